# Generated from tests/compat/_async/__init__.py by tools/twins.py: change that file, then run the tool.

