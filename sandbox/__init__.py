"""A local stand-in for a Supervisely instance, for trying and testing the two apps without an account.

It answers the part of the public HTTP API that the apps and the Python SDK use on their behalf, keeps its state in one
folder, and claims to be nothing more than a sandbox: one team, one user, no permissions, no web page.
"""
