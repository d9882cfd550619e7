"""The panel of the demo: what this process does, and buttons that break things on purpose.

The shops know nothing of it: `on_flask`, `on_fastapi` and `on_django` put it around them.  It is for the demo, which
sets ``SHOP_PANEL``, and answers nobody but this machine.
"""

import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader

from .experiments import EXPERIMENTS, Bench, Experiment, Result
from .watching import latest, listen

TEMPLATES = Path(__file__).parent / "templates"


class Panel:
    """What the pages of one shop show; *counters* returns those of its pool.  Raises RuntimeError outside the demo."""

    def __init__(self, framework: str, server: str, counters: Callable[[], Mapping[str, int]], templates: Environment):
        if not os.environ.get("SHOP_PANEL"):
            raise RuntimeError("The panel can kill connections and restart the server: set SHOP_PANEL=1 to have it")
        self.framework = framework
        self.software = f"{framework} {version(framework)} on {server} {version(server)}"
        self.python = f"{platform.python_implementation()} {platform.python_version()}"
        self.experiments: Mapping[str, Experiment] = EXPERIMENTS
        self.results: dict[str, Result] = {}
        self.requests = latest
        self.counters = counters
        self._started = time.monotonic()
        self._one_at_a_time = threading.Lock()
        templates.loader = ChoiceLoader([templates.loader or FileSystemLoader(()), FileSystemLoader(TEMPLATES)])
        templates.globals["panel"] = self
        listen()

    @property
    def process(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        return f"{os.getpid()}, up {minutes}:{seconds:02}"

    def press(self, name: str, cookie: str, token: str) -> None:
        """Do what the button says, as a client of this shop with that *cookie* and CSRF *token*; keep what was seen."""
        with self._one_at_a_time:
            bench = Bench(self.experiments[name], cookie, token, hears_clients_leave=self.framework == "FastAPI")
            self.results[name] = bench.run()
