"""The methods that come with prunekit, one file each.

prunekit finds them through entry points, as it finds anybody else's; `methods/README.md` says how to add one.
"""
