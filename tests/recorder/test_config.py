"""recorder/config/: a whole file, and every fault with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recorder.config import Config, ConfigError, load

SMALL = "apiVersion: recorder/v1alpha1\nstore:\n  folder: data\n"


def read(tmp_path: Path, text: str, **environment: str) -> Config:
    path = tmp_path / "recorder.yaml"
    path.write_text(text)
    return load(path, environment=environment)


def faults(tmp_path: Path, text: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, **environment)
    prefix = f"{tmp_path / 'recorder.yaml'}:"
    found = [str(fault) for fault in caught.value.faults]
    assert all(fault.startswith(prefix) for fault in found)
    return [fault.removeprefix(prefix) for fault in found]


def test_the_smallest_file(tmp_path: Path) -> None:
    config = read(tmp_path, SMALL)
    assert config.store.folder == tmp_path / "data"
    assert [str(address) for address in config.ingest.listen] == ["tailnet:80"]
    assert config.ingest.insecure_allow == () and config.web.listen == ()
    assert config.shutdown.grace == 20.0


def test_whatever_a_control_server_calls_people(tmp_path: Path) -> None:
    names = ("alice", "alice@example.com", "https://id.example.com/u/1#alice", "Ana María", "tag:proxy")
    config = read(tmp_path, SMALL + f"ingest: {{allow: {json.dumps(names)}}}\n")
    assert config.ingest.allow == names
    for bad in ("tag:", "group:dev", "autogroup:admin", "*", "", " a"):
        (fault,) = faults(tmp_path, SMALL + f"ingest: {{allow: {json.dumps([bad])}}}\n")
        assert "ingest.allow[0]: must be" in fault


def test_a_large_one(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
apiVersion: recorder/v1alpha1
tailnet: {socket: /run/t.sock, whoisTTL: 5s, capabilityDomain: example.com}
store:
  url: s3://bucket/${PREFIX}
  options: {endpoint: "https://s3.example.com"}
  optionFiles: {secret_access_key: secrets/key}
ingest:
  listen: ["100.64.0.1:80", "[fd7a:115c:a1e0::1]:80"]
  allow: [tag:proxy, ana@example.com]
  insecureAllow: [10.0.0.0/8]
log: {level: debug, format: console}
shutdown: {grace: 1m30s}
admin:
""",
        PREFIX="casts",
    )
    assert config.store.url == "s3://bucket/casts" and config.store.folder is None
    assert config.store.option_files == {"secret_access_key": tmp_path / "secrets/key"}
    assert config.tailnet.capability_domain == "example.com" and config.shutdown.grace == 90.0
    assert config.ingest.listen[1].is_tailnet


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("apiVersion: recorder/v1alpha1\nstore: {folder: 5, url: 6}\nweb: {listen: [\"127.0.0.1:80\"]}\n",
         ["2:9: store.folder: must be the path of a folder",
          '2:20: store.url: must be the URL of an object store, such as "s3://bucket/prefix", "gs://.." or "az://.."']),
        (SMALL + "index: {url: x, enabled: false}\nweb: {listen: [\"127.0.0.1:80\"]}\n",
         ['4:9: index.url: must be "sqlite:PATH" or "postgresql://USER@HOST/DATABASE" (in a password, / ? # @ [ and ] '
          "are written as % and two hex digits)"]),
        ("", ["1:1: the file is empty"]),
        ("- 1\n", ["1:1: the file must be a mapping of keys"]),
        ("a: [\n", ["2:1: not YAML: while parsing a flow node expected the node content, but found '<stream end>'"]),
        ("store: {folder: x}\n", ["1:1: apiVersion: is required"]),
        ("apiVersion: k8sproxy/v1\nstore: {folder: x}\n", ["1:1: apiVersion: must be recorder/v1alpha1"]),
        ("apiVersion: recorder/v1alpha1\nstore: {}\n", ["2:1: store: needs exactly one of folder and url"]),
        (SMALL + "  url: s3://casts\n", ["2:1: store: needs exactly one of folder and url"]),
        (
            SMALL + "  minFree: lots\n",
            ['4:3: store.minFree: must be a size, such as "64KiB", "1GiB" or a number of bytes'],
        ),
        (SMALL + "nonsense: 1\n", ["4:1: nonsense: unknown key"]),
        (SMALL + "proof: {anchor: {folders: /a}, publicKeys: /k}\n",
         ["4:18: proof.anchor.folders: unknown key; did you mean folder?", "4:32: proof.publicKeys: must be a list"]),
        (SMALL + "  options: {region: 1}\nretention: {rules: [{match: {user: [a]}, keep: 1h}, {keep: 1m}]}\n",
         ["4:13: store.options.region: must be text (put it in quotes)",
          "5:30: retention.rules[0].match.user: unknown key; did you mean users?",
          "5:53: retention.rules[1].match: is required",
          '5:54: retention.rules[1].keep: must be from "1h" to "36500d", or "forever"']),
        (SMALL + "proof: {publicKeys: [1, data/k]}\n",
         ["4:22: proof.publicKeys[0]: must be the path of a file",
          "4:25: proof.publicKeys[1]: is in store.folder (by its name, a link or a mount), where it would protect "
          "nothing: keep it elsewhere"]),
        (SMALL + "log:\n  level: loud\n", ["5:3: log.level: must be debug, info, warning or error"]),
        (
            SMALL + "ingest:\n  listen: [here]\n  sessions: 0\n",
            [
                '5:12: ingest.listen[0]: must be "tailnet:PORT", "IP:PORT" or "[IPv6]:PORT"',
                "6:3: ingest.sessions: must be a whole number from 1 to 100000",
            ],
        ),
        (SMALL + "admin: {address: \"tailnet:9090\"}\n", ["4:9: admin.address: must not be an address of the tailnet"]),
        (
            SMALL + "ingest: {allow: ['tag:a b']}\n",
            ["4:18: ingest.allow[0]: must be a tag of letters, digits and dashes, such as tag:ops"],
        ),
        (SMALL + "store: {folder: y}\n", ["4:1: store: is already in line 2"]),
        (SMALL + "log: {level: \"${LEVEL}\"}\n", ["4:14: log.level: the environment variable LEVEL is not set"]),
        (SMALL + "web: {listen: [\"127.0.0.1:80\"]}\nindex: {enabled: false}\n",
         ["4:7: web.listen: needs an index, and there is none: index.url"]),
        (SMALL + "ingest: {listen: [\"127.0.0.1:80\"]}\nweb: {listen: [\"[::1]:80\", \"127.0.0.1:80\"]}\n",
         ["5:28: web.listen[1]: is the address of ingest.listen[0] too"]),
        (SMALL + "ingest: {listen: [\"127.0.0.1:9003\"]}\n",
         ["4:19: ingest.listen[0]: is the address of admin.address too"]),
        (SMALL + "admin: {address: \"0.0.0.0:81\"}\nweb: {listen: [\"127.0.0.1:81\"]}\n",
         ["5:16: web.listen[0]: is the address of admin.address too"]),
        (SMALL + "admin: {address: \"x:1\"}\ningest: {listen: [\"127.0.0.1:9003\"]}\n",
         ['4:9: admin.address: must be "tailnet:PORT", "IP:PORT" or "[IPv6]:PORT", not a host name']),
        (SMALL + "log: !!python/object:x {}\n", ["4:6: log: YAML tags are not supported"]),
    ],
)  # fmt: skip
def test_faults(tmp_path: Path, text: str, wanted: list[str]) -> None:
    assert faults(tmp_path, text) == wanted


@pytest.mark.parametrize(
    "url", ["mysql://h/d", "sqlite:", "postgresql:d", "postgresql://u:hunter2@[h/d", "1", "index.db"]
)
def test_urls_of_an_index_that_are_none(tmp_path: Path, url: str) -> None:
    (found,) = faults(tmp_path, SMALL + f'index: {{url: "{url}"}}\n')
    assert found.startswith('4:9: index.url: must be "sqlite:PATH" or "postgresql://') and "hunter2" not in found


def test_the_path_of_an_index_is_taken_from_the_directory_of_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, SMALL + 'index: {url: "sqlite:x/index.db"}\n').index.url == f"sqlite:{tmp_path}/x/index.db"
    assert read(tmp_path, SMALL + 'index: {url: "sqlite:/x/index.db"}\n').index.url == "sqlite:/x/index.db"
    url = "postgresql://u:p@h1:5432,h2:5433/d?target_session_attrs=any"
    assert read(tmp_path, SMALL + f'index: {{url: "{url}"}}\n').index.url == url


def test_a_fault_never_repeats_a_value(tmp_path: Path) -> None:
    text = SMALL.replace("folder: data", 'url: "s3://user:${SECRET}@bucket"') + 'shutdown: {grace: "${SECRET}"}\n'
    found = faults(tmp_path, text, SECRET="hunter2-hunter2")
    assert len(found) == 2 and "hunter2" not in str(found)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "recorder.yaml").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "recorder.yaml")
    (tmp_path / "recorder.yaml").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(ConfigError, match="more than"):
        load(tmp_path / "recorder.yaml")
    (tmp_path / "recorder.yaml").write_text("a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [*{before}, *{before}, *{before}, *{before}, *{before}, *{before}, *{before}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ))  # fmt: skip
    with pytest.raises(ConfigError, match="more than 20000 values"):
        load(tmp_path / "recorder.yaml")


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("s3://ab", "bucket"), ("s3://a b c/p", "bucket"), ("s3://casts!/p", "bucket"), ("s3://a..b", "bucket"),
        ("s3a://10.0.0.1/p", "bucket"), ("s3://casts:9000/p", "bucket"), ("s3://" + "a" * 256, "bucket"),
        ("s3:///p", "bucket"), ("gs://Casts", "bucket"), ("gs://-casts", "bucket"), ("az://Casts", "container"),
        ("az://a--b", "container"), ("azure://my_casts", "container"), ("s3://k\u00e4sten", "bucket"),
        ("s3://casts?x=1", "bucket"), ("az://casts-", "container"),
    ],
)  # fmt: skip
def test_names_of_buckets_that_every_store_refuses(tmp_path: Path, url: str, what: str) -> None:
    (fault,) = faults(tmp_path, SMALL.replace("folder: data", "url: " + json.dumps(url)))
    assert (
        fault.startswith("3:") and f"store.url: {url.partition(':')[0]}:// is followed by the name of a {what}" in fault
    )


@pytest.mark.parametrize(
    "url",
    [
        "s3://casts", "s3://my.casts-1/p/q", "s3://Old_Casts/p", "s3a://abc", "gs://a_b.example.com/p", "az://a-b/p",
        "az://$root", "abfss://c@account.dfs.core.windows.net/p", "https://account.blob.core.windows.net/c", "memory://",
    ],
)  # fmt: skip
def test_names_of_buckets_that_some_store_has(tmp_path: Path, url: str) -> None:
    assert read(tmp_path, SMALL.replace("folder: data", "url: " + json.dumps(url))).store.url == url
