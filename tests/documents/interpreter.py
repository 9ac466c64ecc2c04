"""A Python session that outlives single blocks: what one block defines, the next one finds.

Reads a JSON string a line from the standard input and runs it. After what the code printed comes a line that begins
with `END` and says 0 or 1, as an exit code does.
"""

import json
import sys
import traceback

END = "--- end of the block: "

if __name__ == "__main__":
    # Blocks may start processes that import the main module anew.
    names = {"__name__": "__main__"}
    for line in sys.stdin:
        code = 0
        try:
            exec(compile(json.loads(line), "<block>", "exec"), names)
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            code = 1
        print(f"\n{END}{code}", flush=True)
