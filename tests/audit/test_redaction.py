"""Redaction: no secret that a client can send in any form comes out; what is no secret stays as it was sent."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8sproxy.audit import redaction
from k8sproxy.audit.redaction import REDACTED, redact_body, redact_query
from k8sproxy.audit.secretwords import hides
from k8sproxy.request.requestinfo import RequestInfo, request_info
from tests.strategies import json_values, mutations

SECRET = "hunter2-and-a-half"
CODED = base64.b64encode(SECRET.encode()).decode()
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
SECRETS = request_info("POST", "/api/v1/namespaces/default/secrets")
PODS = request_info("POST", "/api/v1/namespaces/default/pods")
MAPS = request_info("PATCH", "/api/v1/namespaces/default/configmaps/a")
OBJECT: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Secret",
    "type": "Opaque",
    "metadata": {
        "name": "db",
        "labels": {"app": "db"},
        "annotations": {LAST_APPLIED: json.dumps({"kind": "Secret", "data": {"password": CODED}}), "note": SECRET},
    },
    "data": {"password": CODED},
    "stringData": {"password": SECRET},
}


def told(info: RequestInfo, value: object, *, truncated: bool = False) -> Any:
    """What comes out of a JSON value (None: nothing), once it is sure that no secret does."""
    body, redacted = redact_body(info, json.dumps(value).encode(), truncated=truncated)
    assert SECRET.encode() not in body and CODED.encode() not in body
    assert redacted
    return json.loads(body) if body else None


def as_sent(info: RequestInfo, body: bytes) -> bool:
    return redact_body(info, body, truncated=False) == (body, False)


# --- sensitive resources ---


def test_a_secret_keeps_its_names_and_nothing_else() -> None:
    assert told(SECRETS, OBJECT) == {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {
            "name": "db",
            "labels": {"app": "db"},
            "annotations": {LAST_APPLIED: REDACTED, "note": REDACTED},
        },
        "data": {"password": REDACTED},
        "stringData": {"password": REDACTED},
    }


@pytest.mark.parametrize(
    ("patch", "want"),
    [
        (
            [
                {"op": "replace", "path": "/data/password", "value": CODED},
                {"op": "test", "path": "/x", "value": [CODED]},
            ],
            [
                {"op": "replace", "path": "/data/password", "value": REDACTED},
                {"op": "test", "path": "/x", "value": [REDACTED]},
            ],
        ),
        ({"data": {"password": CODED, "old": None}}, {"data": {"password": REDACTED, "old": None}}),
        ({"data": {"$patch": "replace", "a": CODED}}, {"data": {"$patch": REDACTED, "a": REDACTED}}),
        ({"data": CODED, "extra": [[CODED]]}, {"data": REDACTED, "extra": [[REDACTED]]}),
        ({"Data": {"a": CODED}, "type": {"x": CODED}}, {"Data": {"a": REDACTED}, "type": {"x": REDACTED}}),
        (
            {"kind": "SecretList", "items": [{"data": {"a": CODED}}]},
            {"kind": "SecretList", "items": [{"data": {"a": REDACTED}}]},
        ),
        ([CODED, 1, True], [REDACTED, REDACTED, REDACTED]),
        (CODED, REDACTED),
        ({"metadata": CODED}, {"metadata": REDACTED}),
        ({"metadata": {"name": [CODED]}, "items": CODED}, {"metadata": {"name": [REDACTED]}, "items": REDACTED}),
    ],
)
def test_patches_and_odd_shapes_of_secrets(patch: object, want: object) -> None:
    assert told(SECRETS, patch) == want


def test_options_of_a_deletion_stay() -> None:
    options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background", "gracePeriodSeconds": 0}
    assert told(request_info("DELETE", "/api/v1/namespaces/a/secrets/b"), options) == options


@pytest.mark.parametrize(
    "body",
    [
        b"data:\n  password: " + CODED.encode(),  # server-side apply, as YAML
        b"k8s\x00\n\x0c\n\x02v1\x12\x06Secret\x12" + SECRET.encode(),
        b"\xd9\xd9\xf7\xa1ddata" + SECRET.encode(),
        b"\x1f\x8b" + SECRET.encode(),
        json.dumps(OBJECT).encode()[:-1],
        json.dumps(OBJECT).encode("utf-16"),
        b'{"data":{"a":"' + CODED.encode() + b'"},"data":{}}',
        b'{"data":NaN,"x":"' + CODED.encode() + b'"}',
        b"[" * 50_000 + CODED.encode(),
        b"[" * 900 + b'"' + CODED.encode() + b'"' + b"]" * 900,
    ],
)
def test_what_cannot_be_read_of_a_secret_is_dropped(body: bytes) -> None:
    out, redacted = redact_body(SECRETS, body, truncated=False)
    assert redacted and CODED.encode() not in out and SECRET.encode() not in out


def test_a_cut_body_of_a_secret_is_dropped() -> None:
    assert redact_body(SECRETS, json.dumps(OBJECT).encode(), truncated=True) == (b"", True)
    assert redact_body(SECRETS, b"{}", truncated=True) == (b"", True)


def test_server_side_apply_as_kubectl_sends_it() -> None:
    info = request_info("PATCH", "/api/v1/namespaces/a/secrets/b?fieldManager=kubectl")
    assert told(info, OBJECT)["data"] == {"password": REDACTED}


@pytest.mark.parametrize(
    "target",
    [
        "/apis/authentication.k8s.io/v1/tokenreviews",
        "/apis/bitnami.com/v1alpha1/namespaces/a/sealedsecrets",
        "/apis/example.com/v1/vaulttokens",
        "/api/v1/namespaces/a/secrets/b/status",
        "/api/v1/watch/namespaces/a/secrets",
    ],
)
def test_other_sensitive_resources(target: str) -> None:
    want = {"kind": "X", "spec": {"token": REDACTED, "audiences": [REDACTED]}}
    assert told(request_info("POST", target), {"kind": "X", "spec": {"token": SECRET, "audiences": [SECRET]}}) == want


def test_a_token_request_keeps_its_audiences() -> None:
    info = request_info("POST", "/api/v1/namespaces/a/serviceaccounts/b/token")
    request = {"kind": "TokenRequest", "spec": {"audiences": ["x"], "expirationSeconds": 600}}
    assert as_sent(info, json.dumps(request).encode())
    assert told(info, {**request, "status": {"token": SECRET}})["status"] == {"token": REDACTED}
    assert redact_body(info, b"k8s\x00whatever", truncated=False) == (b"", True)
    assert redact_body(info, b"{}", truncated=True) == (b"", True)


@pytest.mark.parametrize(
    "target", ["/api/v1/namespaces/a/services/web/proxy/login", "/api/v1/proxy/nodes/n1/run", "/api/v1/nodes/n/proxy/x"]
)
def test_bodies_of_applications_are_dropped(target: str) -> None:
    assert redact_body(request_info("POST", target), b"user=ann&pw=1", truncated=False) == (b"", True)
    assert redact_body(request_info("POST", target), b"", truncated=False) == (b"", False)


# --- other resources ---


@pytest.mark.parametrize(
    "body",
    [
        b'{"kind":"Pod",  "spec":{"replicas":1}}',
        b'{"kind":"Pod","spec":{"volumes":[{"secret":{"secretName":"db"}},{"projected":{"sources":[{"serviceAccountToken":'
        b'{"expirationSeconds":3607,"path":"token"}}]}}],"automountServiceAccountToken":false,"imagePullSecrets":[{"name":"r"}]}}',
        b'{"env":[{"name":"DB_PASSWORD","valueFrom":{"secretKeyRef":{"name":"db-password","key":"password"}}}]}',
        b'{"spec":{"request":"LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K","signerName":"kubernetes.io/x"}}',
        b"spec:\n  replicas: 1\n",
        b'{"data":{"nginx.conf":"tokens off;\\nsecretName: a\\nauthor: b\\nkeys = 4; passwordFile=/x"}}',
        b'{"image":"https://r.example.com:5000/a@sha256:00","mail":"http://x:80/?q=a:b@c"}',
        b'{"spec": {"cut',
        b"k8s\x00\n\x09\n\x02v1\x12\x03Pod\x12serviceAccountToken",
        "{'name': 'é".encode()[:-1],
        b'{"secret":""}',
        b'{"c":"x --token-file /etc/t --tokens - --no-auth --secretName db"}',
        b'{"c":"<token></token> <tokenName>x</tokenName>"}',
        b'{"args":["-u","1000:1000","-p","80","mysql"],"c":"docker run -u 1000:1000 -p 80:80 x -u http://x"}',
        b'{"c":"identified as faulty: the password\\n expires\\nlogin page"}',
        b'{"image":"ghp_x/a:npm_1","price":"$1$ and {md5}","svc":"db:5432:tcp","args":["$(A)","${B}"]}',
        b'{"volumes":[{"secret":{"secretName":"a","defaultMode":420,"items":[{"key":"k","path":"p"}],"optional":true}}]}',
        b'{"password":{"valueFrom":{"secretKeyRef":{"name":"a","key":"b"}}},"tokenSecret":{"name":"a","key":"b"}}',
        b'[{"op":"add","path":"/spec/volumes/0/secret/secretName","value":"db"}]',
    ],
)
def test_what_is_no_secret_stays_as_sent(body: bytes) -> None:
    assert as_sent(PODS, body)


@pytest.mark.parametrize(
    "value",
    [
        {"metadata": {"annotations": {LAST_APPLIED: json.dumps(OBJECT)}}},
        {"spec": {"template": {"metadata": {"annotations": {LAST_APPLIED: SECRET}}}}},
        {"kind": "List", "items": [OBJECT]},
        {"spec": {"manifests": [{"kind": "Secret", "stringData": {"a": SECRET}}]}},
        [{"op": "add", "path": "/metadata/annotations/" + LAST_APPLIED.replace("/", "~1"), "value": SECRET}],
        [{"op": "add", "path": "/spec/password", "value": SECRET}],
        {"spec": {"containers": [{"env": [{"name": "DB_PASSWORD", "value": SECRET}]}]}},
        {"spec": {"containers": [{"args": ["--password=" + SECRET]}]}},
        {"spec": {"containers": [{"args": ["--db-password", SECRET]}]}},
        {"data": {"config": "users:\n- user:\n    token: " + SECRET}},
        {"data": {"tls.key": "-----BEGIN PRIVATE KEY-----\n" + SECRET}},
        {"data": {"x": "export DB_PASSWORD=" + SECRET}},
        {"data": {"manifest": json.dumps({"kind": "Secret", "data": {"a": CODED}})}},
        {"data": {"manifest": json.dumps(json.dumps({"kind": "Secret", "data": {"a": CODED}}))}},
        {"data": {"a": "eyJhbGciOiJSUzI1NiJ9." + SECRET}},
        {"spec": {"header": "Bearer " + SECRET}},
        {"spec": {"clientSecret": SECRET, "apiKey": [SECRET, {"kept": 1}], "pin_token": 1234}},
        {"stringData": {"a": SECRET}},
        {"data": {"url": "postgres://ann:" + SECRET + "@db/"}},
        {"spec": {"containers": [{"env": [{"name": "X", "value": "redis://:" + SECRET + "@r:6379"}]}]}},
        {"spec": {"adminPassword": {"value": SECRET}, "passwords": [{"value": SECRET}]}},
        {"data": {"config": "[default]\naws_access_key_id = AKIA\naws_secret_access_key = " + SECRET}},
        {"data": {"config.json": json.dumps({"auths": {"r.example.com": {"auth": CODED}}})}},
        {"data": {"app.properties": "db.user=a\napi.key=" + SECRET}},
        {"data": {"app.yaml": "db:\n  apiKey : " + SECRET}},
        {"data": {"x": "passphrase: " + SECRET}},
        {"data": {".env": "DB_PASS=" + SECRET}},
        {"spec": {"containers": [{"command": ["sh", "-c", "mysql --password " + SECRET]}]}},
        {"spec": {"lifecycle": "plink -pw '" + SECRET + "'"}},
        {"data": {"settings.xml": "<server><password>" + SECRET + "</password></server>"}},
        {"spec": {"containers": [{"args": ["--api-key=" + SECRET]}]}},
        {"spec": {"containers": [{"command": ["sh", "-c", "curl -H 'X-Api-Key: " + SECRET + "'"]}]}},
        {"spec": {"containers": [{"command": ["sh", "-c", "curl -u me:" + SECRET + " http://x"]}]}},
        {"spec": {"containers": [{"command": ["curl", "-sSu", "me:" + SECRET, "http://x"]}]}},
        {"spec": {"containers": [{"args": ["--user", "me:" + SECRET]}]}},
        {"spec": {"containers": [{"args": ["-L", "--proxy-user=me:" + SECRET]}]}},
        {"spec": {"containers": [{"args": ["//nas/a", "-U", "me%" + SECRET]}]}},
        {"spec": {"x": "curl -ume:" + SECRET}},
        {"spec": {"x": "mysql -u root -p" + SECRET}},
        {"spec": {"containers": [{"command": ["mysqldump", "-uroot", "-p" + SECRET, "db"]}]}},
        {"spec": {"containers": [{"command": ["redis-cli", "-a", SECRET, "ping"]}]}},
        {"spec": {"x": "sshpass -p " + SECRET + " ssh h"}},
        {"spec": {"x": "docker login -u me -p " + SECRET}},
        {"spec": {"x": "ldapsearch -D cn=a -w " + SECRET}},
        {"spec": {"x": "htpasswd -nbB me " + SECRET}},
        [
            {"op": "add", "path": "/a/args/-", "value": "-u"},
            {"op": "add", "path": "/a/args/-", "value": "me:" + SECRET},
        ],
        {"data": {"netrc": "machine h login me password " + SECRET}},
        {"data": {".netrc": "machine h\n  login me\n  password " + SECRET + "\n"}},
        {"data": {".netrc": "default login me password " + SECRET}},
        {"data": {"init.sql": "CREATE USER 'a'@'%' IDENTIFIED BY '" + SECRET + "';"}},
        {"data": {"init.sql": "alter user a identified with caching_sha2_password by '" + SECRET + "'"}},
        {"data": {"init.sql": "CREATE ROLE a WITH LOGIN PASSWORD '" + SECRET + "'"}},
        {"data": {"init.sql": "SET PASSWORD FOR 'a'@'%' = '" + SECRET + "'"}},
        {"data": {"init.sql": "UPDATE u SET x = PASSWORD('" + SECRET + "')"}},
        {"data": {"redis.conf": "port 1\nrequirepass " + SECRET + "\n"}},
        {"data": {"nslcd.conf": "binddn cn=a\nbindpw " + SECRET}},
        {"data": {"x": "ghp_" + SECRET * 3}},
        {"data": {"x": "a=glpat-" + SECRET * 3}},
        {"data": {"x": "xoxb-" + SECRET * 3}},
        {"data": {"x": "admin:$apr1$" + SECRET}},
        {"data": {"x": "root:$6$" + SECRET + ":19000:0::"}},
        {"data": {"x": "$2y$10$" + SECRET}},
        {"data": {"x": "olcRoot: {SSHA}" + SECRET}},
        {"data": {"x": "db:5432:*:ann:" + SECRET}},
        {"pw": {"x": SECRET}},
        {"spec": {"dbPasswords": {"prod": {"main": [SECRET]}}, "pin": {"token": {"a": 1234}}}},
        {"spec": {"apiSecret": {"key": SECRET}}},
        [{"op": "add", "path": "/spec/pw/prod", "value": SECRET}],
        [{"op": "add", "path": "/spec/pw", "value": {"prod": SECRET}}],
        {"spec": {"password": {"valueFrom": {"x": {"password": SECRET}}}}},
    ],
)
def test_secrets_in_other_resources(value: object) -> None:
    assert told(MAPS, value) is not None


@pytest.mark.parametrize(
    "name",
    [
        *("pw", "PW", "dbPw", "DB_PW", "db-pw", "pw2", "rootPwd", "userPass", "DB_PASS_1", "psk", "wifiPSK", "otp"),
        *(
            "dbKennwort",
            "contrasena",
            "sentryDsn",
            "connectionString",
            "CONN_STR",
            "slackWebhookUrl",
            "signing_key",
            "tlsKey",
        ),
        *("creds", "awsCreds", "cred", "passcode", "proxyAuth", "PROXY_AUTH", "urlSig", "pswd", "admin.pw", "x[pw]"),
    ],
)
def test_short_names_of_secrets(name: str) -> None:
    """{"pw": ..} and names in camel case ({"dbPass": ..}) were told."""
    for value in (
        {"spec": {name: SECRET}},
        {"spec": {name: {"value": SECRET}}},
        {"spec": {"env": [{"name": name, "value": SECRET}]}},
        {"spec": {"settings": [{"key": name, "values": [SECRET]}, {"header": name, "default": SECRET}]}},
        {"spec": {"args": [f"--{name.strip('x[]')}", SECRET]}},
        [{"op": "add", "path": f"/data/{name}", "value": SECRET}],
        [{"op": "add", "path": f"/data/{name}/0", "value": SECRET}],
    ):
        assert told(MAPS, value) is not None
    if name.replace("_", "").replace("-", "").isalnum():
        assert redact_body(MAPS, f"data:\n  {name}: {SECRET}\n".encode(), truncated=False) == (b"", True)
        query, values, redacted = redact_query(f"{name}={SECRET}&x={name}:{SECRET}")
        assert redacted and SECRET not in query + str(values)


@pytest.mark.parametrize(
    "name", ["power", "passive", "author", "signal", "pwr", "spw.x", "design", "Sigma", "capacity", "options", "topics"]
)
def test_names_that_only_look_like_it(name: str) -> None:
    assert as_sent(MAPS, json.dumps({"spec": {name: "x", "env": [{"name": name, "value": "x"}]}}).encode())


@given(
    st.text(st.sampled_from("pwPWsaSkcredotuhig_-./ 1[]kKyY"), max_size=14)
    | st.lists(
        st.sampled_from(["hook", "url", "conn", "ection", "str", "ing", "dsn", "_", "-", ".", "A", "key", "tls"]),
        max_size=6,
    ).map("".join)
)
def test_no_name_hides_what_is_not_looked_at(name: str) -> None:
    """What tells quickly that there is nothing to look for knows of every name."""
    if hides(name):
        assert redaction._may_hide(name.lower().encode())


_ENV = "/spec/template/spec/containers/0/env"
_ARGS = "/spec/template/spec/containers/0/args"


@pytest.mark.parametrize(
    "patch",
    [
        [
            {"op": "test", "path": f"{_ENV}/3/name", "value": "DB_PASSWORD"},
            {"op": "replace", "path": f"{_ENV}/3/value", "value": SECRET},
        ],
        [
            {"op": "replace", "path": f"{_ENV}/3/value", "value": SECRET},
            {"op": "test", "path": f"{_ENV}/3/name", "value": "DB_PASSWORD"},
        ],
        [
            {"op": "test", "path": f"{_ENV}/3", "value": {"name": "DB_PASSWORD"}},
            {"op": "add", "path": f"{_ENV}/0", "value": {"name": "A", "value": "b"}},
            {"op": "replace", "path": f"{_ENV}/4/value", "value": SECRET},
        ],
        [
            {"op": "test", "path": _ENV, "value": [{"name": "A"}, {"name": "DB_PW", "value": "old"}]},
            {"op": "replace", "path": f"{_ENV}/1", "value": {"value": SECRET}},
            {"op": "add", "path": f"{_ENV}/2", "value": [{"value": [SECRET]}]},
        ],
        [
            {"op": "add", "path": "/spec/settings/0/key", "value": "api_key"},
            {"op": "add", "path": "/spec/settings/0/values/-", "value": SECRET},
            {"op": "add", "path": "/spec/settings/0/default", "value": {"a": SECRET}},
        ],
        [
            {"op": "test", "path": f"{_ARGS}/0", "value": "--password"},
            {"op": "replace", "path": f"{_ARGS}/1", "value": SECRET},
        ],
        [
            {"op": "test", "path": "/spec/template/spec/containers/0", "value": {"args": ["--pw"]}},
            {"op": "add", "path": f"{_ARGS}/-", "value": SECRET},
        ],
        [
            7,
            {"op": "test", "path": f"{_ENV}/3/name", "value": "DB_PASSWORD"},
            {"path": f"{_ENV}/3/value", "value": SECRET},
        ],
        {"spec": {"patches": [[
            {"op": "replace", "path": f"{_ENV}/3/value", "value": SECRET},
            {"op": "test", "path": f"{_ENV}/3/name", "value": "DB_PASSWORD"},
        ]]}},
        {"spec": {"patches": [[
            {"op": "test", "path": f"{_ENV}/3/name", "value": "DB_PASSWORD"},
            {"op": "replace", "path": f"{_ENV}/3/value", "value": SECRET},
        ]]}},
    ],
)  # fmt: skip
def test_a_patch_that_names_a_secret_in_another_operation(patch: object) -> None:
    assert told(PODS, patch) is not None
    body = json.dumps(patch).encode()
    for size in range(1, len(body)):
        assert SECRET[:4].encode() not in redact_body(PODS, body[:size], truncated=True)[0]


def test_a_patch_that_names_no_secret_stays_as_sent() -> None:
    patch = [
        {"op": "test", "path": f"{_ENV}/3/name", "value": "COLOUR"},
        {"op": "replace", "path": f"{_ENV}/3/value", "value": "blue"},
        {"op": "add", "path": f"{_ARGS}/-", "value": "--verbose"},
        {"op": "remove", "path": "/spec/key"},
    ]
    assert as_sent(PODS, json.dumps(patch).encode())
    named = [*patch, {"op": "test", "path": f"{_ENV}/4/name", "value": "DB_PASSWORD"}]
    out, redacted = redact_body(PODS, json.dumps(named).encode(), truncated=False)
    assert redacted and json.loads(out) == [
        patch[0], {**patch[1], "value": REDACTED}, patch[2], patch[3], named[-1],
    ]  # fmt: skip


def test_numbers_count_and_switches_do_not() -> None:
    assert told(PODS, {"token": 123, "useToken": True, "tokenTTL": 5}) == {
        "token": REDACTED,
        "useToken": True,
        "tokenTTL": 5,
    }


@pytest.mark.parametrize(
    "body",
    [
        b"data:\n  password: hunter2",
        b"data:\n  url: postgres://ann:hunter2@db/",
        b'{"a":"postgres:\\/\\/ann:hunter2@db',
        b"k8s\x00pod DB_PASSWORD hunter2",
        b"k8s\x00\n\x03\n\x01x\x12\x1bpostgres://ann:hunter2@db/x",
        b"\xd9\xd9\xf7 -----BEGIN PRIVATE KEY",
        b"k8s\x00" + LAST_APPLIED.encode(),
        b"k8s\x00 \n\x06Secret\x12",
        b"\x1f\x8b\x08 no words at all \xff",
        b'{"spec":{"password":"hunter2"',
        b'{"spec":{"password":"hunter2","x":NaN}}',
        b'{"password":"hunter2","password":1}',
        b'{"p\\u0061ssword":"hunter2","p\\u0061ssword":1}',
    ],
)
def test_what_cannot_be_read_and_may_hold_a_secret_is_dropped(body: bytes) -> None:
    assert redact_body(PODS, body, truncated=False) == (b"", True)


@pytest.mark.parametrize(
    "name", ["token", "auth", "jwt", "cookie", "kubeconfig", "credentials", "sshkey", "t" * 60 + "token"]
)
def test_a_telling_name_in_front_of_a_value_in_protobuf(name: str) -> None:
    """As a ConfigMap has its keys, and a container its environment."""
    entry = b"\n" + bytes((len(name),)) + name.encode() + b"\x12\x07hunter2"
    assert redact_body(MAPS, b"k8s\x00\n\x03\n\x01x" + entry, truncated=False) == (b"", True)
    assert redact_body(MAPS, b"k8s\x00\n\n" + entry, truncated=True) == (b"", True)
    other = entry.replace(b"\x12", b"\x1a")
    assert as_sent(MAPS, b"k8s\x00" + other)


def test_cbor_names_its_fields() -> None:
    assert redact_body(MAPS, b"\xd9\xd9\xf7\xa1etokenghunter2", truncated=False) == (b"", True)
    assert as_sent(MAPS, b"\xd9\xd9\xf7\xa1dkindcPod")


def test_a_member_spelt_with_escapes() -> None:
    assert redact_body(PODS, b'{"p\\u0061ssword":"hunter2"}', truncated=False) == (b'{"password":"REDACTED"}', True)


def test_cut_bodies_stay_where_nothing_in_them_is_suspicious() -> None:
    assert redact_body(PODS, b'{"spec":{"repl', truncated=True) == (b'{"spec":{"repl', False)
    assert redact_body(PODS, b'{"spec":{"token":"x', truncated=True) == (b"", True)


@pytest.mark.parametrize(
    ("value", "begins"),
    [
        ({"items": [{"data": {"x": CODED, "y": {}}, "kind": "Secret"}]}, b'{"items": ['),
        ({"spec": {"x": [], "env": [{"name": "A"}, {"value": SECRET, "name": "DB_PASSWORD"}]}}, b'{"spec": {"x": [], '),
        ([{"op": "add"}, {"value": SECRET, "path": "/data/password"}], b'[{"op": "add"}, '),
        ({"a": '}]{[\\"', "o": {"data": {"x": {"value": SECRET}}, "kind": "Secret"}}, b'{"a": '),
    ],
)
def test_wherever_a_body_is_cut_nothing_comes_out(value: object, begins: bytes) -> None:
    """Also where what tells that it is a secret would have stood behind the cut."""
    body = json.dumps(value).encode()
    for size in range(1, len(body)):
        out, redacted = redact_body(MAPS, body[:size], truncated=True)
        assert SECRET[:3].encode() not in out and CODED[:3].encode() not in out
        assert redacted is (out != body[:size])
        assert out in (b"", body[:size]) or out.startswith(begins)


def test_what_is_cut_ends_in_front_of_what_is_unfinished() -> None:
    cut = b'{"data":{"a":"x","data":"y"},"items":[{"data":{"a":1},"kind":"Pod"},{"data":{"a":"c'
    told = b'{"data":{"a":"x","data":"y"},"items":[{"data":{"a":1},"kind":"Pod"},'
    assert redact_body(MAPS, cut, truncated=True) == (told, True)
    assert redact_body(MAPS, b'{"data":{"a":"x', truncated=True) == (b'{"data":{"a":"x', False)
    assert redact_body(MAPS, b"a:\n- data:\n    x: y\n", truncated=True) == (b"", True)
    assert redact_body(MAPS, b"data:\n  x: y\n", truncated=True) == (b"data:\n  x: y\n", False)


@given(json_values, st.data())
def test_secrets_never_come_out_of_anything(value: object, data: st.DataObject) -> None:
    wrapped = {"spec": [value, {"kind": "Secret", "data": {"a": CODED}}, {"token": SECRET}], "password": SECRET}
    for info in (SECRETS, PODS):
        for body in (json.dumps(wrapped).encode(), data.draw(mutations(json.dumps(OBJECT).encode()))):
            out, _ = redact_body(info, body, truncated=data.draw(st.booleans()))
            if info is SECRETS or body == json.dumps(wrapped).encode():
                assert SECRET.encode() not in out and CODED.encode() not in out


@pytest.mark.parametrize(
    "piece",
    [
        b"eyJ",
        b"LS0tLS1CRUdJTi",
        b"token ",
        b"kind:",
        b'kind\\"',
        b"Basic ",
        b"ZXlK",
        b'"token" ',
        b"api_",
        b"kind: ",
        b"key=",
        b"-u ",
        b" -ua",
        b"mysql ",
        b"login -",
        b"login a ",
        b"password ",
        b"password(",
        b"identified with ",
        b"a b ",
        b"pw  ",
        b"\\npw x",
        b"redis-cli -",
    ],
)
def test_no_body_costs_more_than_its_size(piece: bytes) -> None:
    # Quadratic search would run into the suite's time limit: 64 KiB of what a pattern begins with.
    for body in (piece * (65536 // len(piece)), json.dumps([piece.decode() * (65536 // len(piece))]).encode()):
        redact_body(PODS, body, truncated=False)


# --- queries ---


def test_queries() -> None:
    assert redact_query("") == ("", {}, False)
    assert redact_query("watch=true&watch=1&x") == ("watch=true&watch=1&x", {"watch": ["true", "1"], "x": [""]}, False)
    assert redact_query("command=sh&command=-c&command=a%20b+c") == (
        "command=sh&command=-c&command=a%20b+c",
        {"command": ["sh", "-c", "a b c"]},
        False,
    )


@pytest.mark.parametrize(
    "query",
    [
        "token=hunter2",
        "a=b&access_token=hunter2",
        "%74oken=hunter2",
        "X-Amz-Signature=hunter2",
        "api_key=hunter2",
        "auth=hunter2",
        "x=Bearer+hunter2",
        "x=a;token=hunter2",
        "a;token=hunter2",
        "x=a;auth=hunter2",
        "x=a;api_key=hunter2;b=c",
        "command=--password%3Dhunter2",
        "x=https://ann:hunter2@h/",
        "command=login&command=--token&command=hunter2&command=x",
        "command=--token&stdin=1&command=hunter2",
        "token=a=hunter2",
        "token=%zzhunter2",
        "pw=hunter2",
        "dbPass=hunter2",
        "command=a&env=X%3Dhunter2",
        "command=sh&command=-c&command=mysql+--password+hunter2",
        "command=curl&command=-u&command=me:hunter2&command=http://x",
        "command=curl&stdin=1&command=-ume:hunter2",
        "command=sh&command=-c&command=curl+-u+me:hunter2",
        "command=mysql&command=-phunter2",
        "command=redis-cli&command=-a&command=hunter2",
        "command=sh&command=-c&command=echo+%22identified+by+'hunter2'%22",
    ],
)
def test_secrets_in_queries(query: str) -> None:
    raw, values, redacted = redact_query(query)
    assert redacted
    assert "hunter2" not in raw + str(values)


def test_what_a_query_asks_for_is_no_secret() -> None:
    query = "continue=abc&resourceVersion=1&fieldSelector=metadata.name%3Dx&labelSelector=app&container=token&limit=5"
    assert redact_query(query)[0] == query
    assert redact_query("command=--token&stdin=1")[0] == "command=--token&stdin=1"


@pytest.mark.parametrize("query", ["a;b=c", "x=%zz", "&&"])
def test_pairs_that_go_does_not_read_are_in_the_path_alone(query: str) -> None:
    assert redact_query(query) == (query, {}, False)
