"""What a run, and a harness that lists its names, see of the server's environment."""

import json
from collections.abc import Callable

import pytest
from serving import COMPLETED, ServerHere, Site


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set variables of the server."""
    for name in ("HF_HOME", "HF_TOKEN", "DATABASE_URL", "TEAM_NAME", "TEAM_KEY"):
        monkeypatch.setenv(name, f"server's {name}")


def environment_of_a_run(server: ServerHere, site: Site) -> dict[str, str]:
    job = server.api.run("environment")
    assert job.status == COMPLETED
    found: dict[str, str] = json.loads((site.toy_dir / "environment").read_text())
    return found


def test_a_run_inherits_what_is_on_the_list_and_nothing_that_looks_like_a_secret(
    variables: None, site: Site, serve: Callable[..., ServerHere]
) -> None:
    found = environment_of_a_run(serve(), site)
    assert found["HF_HOME"] == "server's HF_HOME"
    assert found.keys().isdisjoint({"HF_TOKEN", "DATABASE_URL", "TEAM_NAME", "TEAM_KEY", "PYTEST_CURRENT_TEST"})
    assert found["TOY_DIR"] == str(site.toy_dir)  # from the harness's `env`


def test_the_setting_replaces_the_list(variables: None, site: Site, serve: Callable[..., ServerHere]) -> None:
    found = environment_of_a_run(serve(inherit_env="TEAM_*,TEAM_KEY"), site)
    assert (found["TEAM_NAME"], found["TEAM_KEY"]) == ("server's TEAM_NAME", "server's TEAM_KEY")
    assert found.keys().isdisjoint({"HF_HOME", "HF_TOKEN", "PATH"})
