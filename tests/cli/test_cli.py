"""The commands that need nobody: serve's errors, check, example, completion, version."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import k8sproxy
import k8sproxy.app
from k8sproxy.cli import cli
from k8sproxy.common.build import is_compiled
from k8sproxy.config import Config

GOOD = """\
apiVersion: k8sproxy/v1alpha1
listen: [{address: "127.0.0.1:0", tls: {source: none}}]
clusters: [{name: prod, kubeconfig: kubeconfig}]
"""


def run(*args: str, environment: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, args, prog_name="k8sproxy", env=environment)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    (tmp_path / "kubeconfig").write_text("{current-context: a, contexts: [{name: a}]}")
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    return path


def test_check_is_content(good: Path) -> None:
    result = run("check", str(good))
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{good}: ok (1 listener, 1 cluster)\n", "")
    result = run("check", "--json", str(good))
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"ok": True, "faults": [], "warnings": []})


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_check_warns_of_a_proxy_listener_where_peers_can_dial(good: Path, address: str) -> None:
    good.write_text(GOOD.replace("127.0.0.1:0", f"{address}:8080").replace("none}}", "none}, proxyProtocol: true}"))
    result = run("check", str(good))
    assert result.exit_code == 0
    assert result.stderr.startswith(f"{good}: warning: listen[0].address: ") and "127.0.0.2" in result.stderr
    (warning,) = json.loads(run("check", "--json", str(good)).stdout)["warnings"]
    assert warning["key"] == "listen[0].address"
    good.write_text(good.read_text().replace(f"{address}:8080", "127.0.0.2:8080"))
    assert run("check", str(good)).stderr == ""


def test_check_says_every_fault(good: Path) -> None:
    good.write_text(GOOD.replace("none", "nix").replace("kubeconfig: kubeconfig", "kubeconfig: missing"))
    result = run("check", str(good))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        f"{good}:2:41: listen[0].tls.source: must be tailnet, files, generated or none",
        f"{good}:3:25: clusters[0].kubeconfig: {good.parent}/missing: No such file or directory",
    ]
    result = run("check", "--json", "--no-files", str(good))
    assert result.exit_code == 2
    (fault,) = json.loads(result.stdout)["faults"]
    assert fault == {
        "path": str(good),
        "line": 2,
        "column": 41,
        "key": "listen[0].tls.source",
        "message": "must be tailnet, files, generated or none",
    }


def test_a_file_that_is_not_there() -> None:
    for command in (
        ["check", "/no/file"],
        ["serve", "--config", "/no/file"],
        ["whois", "1.2.3.4", "--config", "/no/file"],
    ):
        result = run(*command)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == "/no/file: can't be read: No such file or directory\n"


def test_serve_runs_the_app_with_a_sound_file_only(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Path, Config]] = []

    def fake(path: Path, config: Config) -> int:
        calls.append((path, config))
        return 7

    monkeypatch.setattr(k8sproxy.app, "run", fake)
    assert run("serve", "--config", str(good)).exit_code == 7
    assert run("serve", environment={"K8SPROXY_CONFIG": str(good)}).exit_code == 7
    assert [path for path, _ in calls] == [good, good]
    good.write_text(GOOD + "x: y\n")
    result = run("serve", "--config", str(good))
    assert (result.exit_code, result.stderr) == (2, f"{good}:4:1: x: unknown key\n")
    assert len(calls) == 2
    assert run("serve").exit_code == 2


def test_the_example_is_the_file() -> None:
    assert run("example").stdout == (Path(k8sproxy.__file__).parent / "example.yaml").read_text()


def test_version() -> None:
    result = run("version", "--json")
    assert json.loads(result.stdout)["version"] == k8sproxy.__version__
    assert json.loads(result.stdout)["compiled"] is is_compiled()
    assert run("version").stdout.startswith(f"k8sproxy {k8sproxy.__version__} (python 3.")
    assert run("--version").stdout == f"k8sproxy {k8sproxy.__version__}\n"


def test_check_does_not_wait_for_what_it_does_not_need(good: Path) -> None:
    script = (
        "import sys\nfrom k8sproxy.cli import cli\n"
        f"cli.main(['check', {str(good)!r}], standalone_mode=False)\n"
        "print(sorted({'aiohttp', 'kubernetes', 'structlog', 'uvloop', 'cryptography'} & set(sys.modules)))\n"
    )
    root = Path(k8sproxy.__file__).parent.parent
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_module_is_the_command() -> None:
    root = Path(k8sproxy.__file__).parent.parent
    result = subprocess.run(
        [sys.executable, "-m", "k8sproxy", "--version"], capture_output=True, text=True, check=True, cwd=root
    )
    assert result.stdout == f"k8sproxy {k8sproxy.__version__}\n"
