"""Be uWSGI, which is a program and no module: ``python -m run_uwsgi`` with its options."""

import os
import sys

program = os.path.join(os.path.dirname(sys.executable), "uwsgi")
os.execv(program, [program, f"--virtualenv={sys.prefix}", *sys.argv[1:]])
