"""What all tests need before the first of them is imported."""

import signal
import sys
from types import ModuleType

# The SDK imports by name each module on the stack of its own import. In a process of pytest-xdist the lowest one is
# code of execnet's that has a name and no module.
sys.modules.setdefault("__channelexec__", ModuleType("__channelexec__"))

# A shell that starts the tests in the background has them ignore Ctrl-C, nohup has them ignore a closed terminal, and
# with them every process that they send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
