"""
The one door to every check. `nox` runs lint, types and test; `nox -l` lists the rest.

Whatever runs tests or measures runs the built wheel and never the tree, so a file that
is missing from the wheel or a dependency that is missing from it fails here first.
"""

import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "virtualenv"

# Environments are kept between runs, for speed; `nox -N` starts from nothing.
nox.options.reuse_venv = "yes"

# The cheapest first, and pytest's own summary last on the screen.
nox.options.sessions = ["lint", "types", "test"]


@nox.session
def test(session: nox.Session) -> None:
    """Run the quick and the slow tests on the wheel. A part: nox -s test -- -k name"""
    install_wheel(session, "server", "test")
    session.run("pytest", "-m", "not crash and not bench and not prove", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the three packages and of the tests, with mypy and pyright."""
    session.install("-e", ".[server,test,bench,types]")
    session.run("mypy")
    # The notice about a newer pyright is a request to the network on every run.
    session.run("pyright", env={"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and who imports whom."""
    session.install("-e", ".[lint]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def crash(session: nox.Session) -> None:
    """Kill processes at every step, for a long time, and count what is left."""
    install_wheel(session, "server", "test")
    session.run("pytest", "-m", "crash", *session.posargs)


@nox.session
def prove(session: nox.Session) -> None:
    """Compare answers with slow, plain definitions of them, over everything there is."""
    install_wheel(session, "server", "test")
    # Its tests are shards of many minutes in all, none of which knows of another: one process
    # per core, and a process that is done takes over what waits for others.
    shards = ("-n", "logical", "--dist", "worksteal")
    session.run("pytest", "-m", "prove", *shards, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure side by side with the alternatives, on this machine."""
    install_wheel(session, "server", "bench")
    if not session.posargs or "query" in session.posargs:
        # 800 MB, and not to be had for every machine: so it is in no extra, which the type
        # checkers would install as well. Without it the benchmark leaves its figures out.
        session.install("chdb>=4.0", success_codes=(0, 1))
    session.run("python", "tests/bench/__main__.py", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Show the lines and branches that no test reaches in its own process."""
    install_wheel(session, "server", "test")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-m", "not crash and not bench and not prove")
    session.run("coverage", "combine")
    session.run("coverage", "report", *session.posargs)


def install_wheel(session: nox.Session, *extras: str) -> None:
    """Build the wheel and install it with *extras*, in the place of an older one."""
    with tempfile.TemporaryDirectory() as folder:
        build = ("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ".")
        session.run(*build, silent=True)
        (wheel,) = Path(folder).glob("*.whl")
        session.install(f"{wheel}[{','.join(extras)}]")
        # pip keeps an installed wheel of the same version; in a kept environment that
        # would be yesterday's code.
        session.install("--force-reinstall", "--no-deps", str(wheel))
