"""What is found, and that both databases find the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from k8sproxy.common.tailnet.peer import Peer
from recorder.access import Place as AccessPlace
from recorder.index import EventFilter, Filter, Index, LookFilter, Scope
from recorder.index.rows import Hit
from recorder.index.words import fold
from recorder.model import End
from recorder.screen import Unseen
from tests.recorder.index.library import ALL, START, Library, Place, api_event, opened, recording


def run(url: str, test: Callable[[Index, Library], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with opened(url) as (index, library):
            await test(index, library)

    asyncio.run(main())


async def pods(index: Index, asked: Filter | str, scope: Scope = ALL) -> list[str]:
    """The pods of what is found: each recording here has its own."""
    await index.settled()
    asked = Filter(text=asked) if isinstance(asked, str) else asked
    return [row.recording.pod for row in (await index.recordings(asked, scope)).items]


def fill(library: Library) -> None:
    library.put(recording(pod="a"), (1.0, "$ kubectl delete deployment/payment-api"), (2.0, "deleted"))
    library.put(recording(pod="b", command="psql -h db_main"), (1.5, "DROP TABLE Customers;"), (3.0, "rm -rf /var/lib"))
    library.put(recording(pod="c"), (0.5, "Zürich 10.0.3.17:8443"), (9.0, "日本語のログ"), (9.5, "payment failed"))


SEARCHES = [
    ("delete", "a"),
    ("deployment", "a"),
    ("deploy", "a"),  # a word may go on
    ('"deploy"', ""),  # not in quotes
    ("payment", "ca"),
    ("PAYMENT-api", "a"),
    ("payment api", "a"),  # both, anywhere
    ("api deleted", "a"),
    ('"api deleted"', ""),  # a phrase ends with its line
    ('"delete deployment"', "a"),
    ('"deployment delete"', ""),
    ("customers drop", "b"),
    ("psql", "b"),  # the command
    ("psql customers", "b"),  # command and screen
    ("db_main", "b"),
    ("main", ""),  # _ is part of a word
    ("rm -rf", "b"),
    ('"-rf /var"', "b"),
    ("/var/lib", "b"),
    ("10.0.3.17", "c"),
    ("10.0.3", "c"),
    ("0.3.17:8443", "c"),
    ("ZÜRICH", "c"),
    ("zurich", "c"),  # without its accents
    ("zu\u0308rich", "c"),  # in another form of Unicode
    ("zuri", "c"),
    ("páyment-ápi", "a"),  # with accents that are not there
    ("ﬀ", ""),
    ("語", "c"),
    ("日本", "c"),
    ("本日", ""),
    ("bash", "ca"),
    ("bash -c", ""),
    ("'; DROP TABLE", "b"),  # marks are nothing
    ("nothing:* | delete", ""),
    ("NOT OR delete", ""),  # words, not operators
    ('delete"', "a"),
    ("* - .", ""),
    ("", "cba"),
    ("   ", "cba"),
]


def test_searches(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        fill(library)
        await index.settled()
        for text, found in SEARCHES:
            assert (text, "".join(await pods(index, text))) == (text, found)

    run(url, test)


ACCENTS = [
    ("Müller ging", "muller", "Müller"),
    ("Müller ging", '"muller ging"', "Müller ging"),
    ("Mu\u0308ller", "müller", "Müller"),
    ("Muller", "müller", "Muller"),
    ("die STRASSE", "straße", "STRASSE"),
    ("die Straße dort", "strasse", "Straße"),
    ("Ærøskøbing Đà Nẵng Łódź", "aeroskobing da nang lodz", "Ærøskøbing"),
    ("x\u0304y\u0304 z", "xy", "x\u0304\u0233"),
    ("ἈΘΗΝΑ Οδός", "αθηνα οδος", "ἈΘΗΝΑ"),
    ("İstanbul ısı", "istanbul isi", "İstanbul"),
    ("ёлка й", "елка", "ёлка"),
    ("résumé.pdf and naïve", "resume.pdf naive", "résumé.pdf"),
    ("カ\u3099ム ガム", "ガム", "ガム"),
    ("한국어", "한국", "한국"),
    ("deployed 🚀 now", "🚀", "🚀"),
    ("deployed 🚀🎉 now", "🎉", "🎉"),
    ("flag 🇩🇪", "🇩🇪", "🇩🇪"),
    ("प्रणाली", "प्रणाली", "प्रणाल"),
]


@pytest.mark.parametrize(("line", "asked", "first"), ACCENTS)
def test_accents_are_nothing_to_a_search(url: str, line: str, asked: str, first: str) -> None:
    async def test(index: Index, library: Library) -> None:
        library.put(recording(pod="a"), (1.0, f"before {line} behind"))
        library.put(recording(pod="b"), (1.0, "others"))
        assert await pods(index, asked) == ["a"]
        (hit,) = (await index.recordings(Filter(text=asked), ALL)).items[0].hits
        assert next(text for text, match in hit.snippet if match) == first
        assert await pods(index, fold(asked).upper()) == ["a"]

    run(url, test)


def test_what_a_terminal_does_not_show_is_found_and_told(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        hides = library.put(recording(pod="hides"), (1.0, "all is well"), (2.0, "\x1b_stolen Sécret\x1b\\ as ever"))
        title = library.put(recording(pod="title"), (1.0, "\x1b]0;ana@web-0\x07$ "))
        plain = library.put(recording(pod="plain"), (1.0, "all is well"))
        await index.settled()
        assert [(await index.get(one.id, ALL)).unseen for one in (hides, title, plain)] == [True, False, False]
        assert await pods(index, "stolen secret") == ["hides"]
        assert await pods(index, "ana") == ["title"]
        assert await pods(index, "APC") == []  # of what hid it nothing is text
        assert await index.hits(hides.id, "secret ever", ALL) == (
            Hit(2.0, (("as ", False), ("ever", True))),
            Hit(2.0, (("stolen ", False), ("Sécret", True)), "APC"),
        )
        assert await index.unseen(hides.id, ALL) == (Unseen(2.0, "APC", "stolen Sécret"),)
        assert await index.unseen(title.id, ALL) == (Unseen(1.0, "title", "ana@web-0"),)
        assert await index.unseen(plain.id, ALL) == ()
        with pytest.raises(KeyError):
            await index.unseen(hides.id, ())

    run(url, test)


def test_hits_tell_when_and_where(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        fill(library)
        await index.settled()
        page = await index.recordings(Filter(text="payment"), ALL)
        assert [row.hits for row in page.items] == [
            (Hit(9.5, (("payment", True), (" failed", False))),),
            (Hit(1.0, (("$ kubectl delete deployment/", False), ("payment", True), ("-api", False))),),
        ]
        psql = (await index.recordings(Filter(text="psql"), ALL)).items[0]
        assert psql.hits == (Hit(0.0, (("psql", True), (" -h db_main", False))),)
        many = library.put(recording(pod="many"), *((float(n), f"again {n}") for n in range(1, 900)))
        await index.settled()
        (row,) = (await index.recordings(Filter(text="again"), ALL)).items
        assert [hit.time for hit in row.hits] == [1.0, 2.0, 3.0]
        assert len(await index.hits(many.id, "again", ALL)) == 500
        assert [hit.time for hit in await index.hits(many.id, "777 5", ALL, most=3)] == [5.0, 50.0, 51.0]
        assert await index.hits(many.id, "..", ALL) == ()
        with pytest.raises(KeyError):
            await index.hits(many.id, "again", ())

    run(url, test)


def test_filters(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        library.put(recording("ann@example.com", pod="a", started=START, duration=5.0))
        library.put(recording("bob_x@example.com", pod="b", started=START + 10, namespace="shop-2", end=End.CUT))
        library.put(recording("bobZx@example.com", pod="c", started=START + 20, cluster="dev[1]", duration=60.0))
        runner = recording(
            "ci", node="runner", tags=["tag:ci", "tag:prod"], pod="d", started=START + 30, command="make 100%"
        )
        library.put(runner)
        library.put(recording(pod="e", started=START + 40, end=End.RUNNING, ended=None, container="side"))
        for asked, found in [
            (Filter(user="ann@example.com"), "ea"),
            (Filter(user="ANN@example.com"), ""),
            (Filter(user="*@example.com"), "ecba"),
            (Filter(user="bob_*"), "b"),  # _ is no wildcard
            (Filter(user="bob?x*"), ""),  # nor is ?
            (Filter(cluster="dev[1]"), "c"),
            (Filter(cluster="dev[*"), "c"),  # nor is [
            (Filter(cluster="dev[1]*"), "c"),
            (Filter(cluster="%"), ""),
            (Filter(namespace="shop"), "edca"),
            (Filter(namespace="shop*"), "edcba"),
            (Filter(namespace="*-*"), "b"),
            (Filter(tag="tag:ci"), "d"),
            (Filter(tag="tag:prod"), "d"),
            (Filter(tag="tag:pro"), ""),
            (Filter(tag="tag:pro*"), "d"),
            (Filter(node="runner"), "d"),
            (Filter(container="side"), "e"),
            (Filter(pod="c"), "c"),
            (Filter(command="100%"), "d"),
            (Filter(command="ake"), "d"),
            (Filter(command="a%e"), ""),
            (Filter(command="m*0"), "d"),
            (Filter(session_type="attach"), ""),
            (Filter(session_type="exec"), "edcba"),
            (Filter(state=End.RUNNING), "e"),
            (Filter(state=End.CUT), "b"),
            (Filter(since=START + 20), "edc"),
            (Filter(until=START + 20), "ba"),
            (Filter(since=START + 10, until=START + 30), "cb"),
            (Filter(min_duration=10), "edcb"),
            (Filter(min_duration=60.0), "c"),
            (Filter(text="bash", user="ann@example.com", since=START + 1), "e"),
            (Filter(text="make", tag="tag:ci", until=START + 31, min_duration=1), "d"),
            (Filter(user="'; DROP TABLE recordings; --"), ""),
            (Filter(user="\0*\ud800"), ""),
            (Filter(since=-1e300, until=1e300), "edcba"),
        ]:
            assert (asked, "".join(await pods(index, asked))) == (asked, found)
        for wrong in (Filter(user="x" * 513), Filter(text="x" * 1001), Filter(text=" ".join(map(str, range(17))))):
            with pytest.raises(ValueError, match="at most"):
                await index.recordings(wrong, ALL)
        got = await index.get(runner.id, ALL)
        assert got.recording == library.kept[runner.id]
        assert (got.indexed, got.text_truncated) == (got.recording.size, False)

    run(url, test)


SCOPES: list[tuple[Scope, str]] = [
    ((), ""),
    (ALL, "dcba"),
    ((Place(users=()),), ""),
    ((Place(users=("*",)),), "dcba"),
    ((Place(users=("ann@*",)),), "ba"),
    ((Place(users=("nobody", "bob@example.com")),), "c"),
    ((Place(users=("nobody",)), Place(users=("*",))), "dcba"),  # one of them has no condition
    ((Place(clusters=("prod",)),), "dca"),
    ((Place(clusters=("prod",), users=("ann@*",)),), "a"),  # all conditions of a place
    ((Place(clusters=("dev",)), Place(users=("bob@*",))), "cb"),  # any of the places
    ((Place(namespaces=("s*", "x")),), "db"),
    ((Place(namespaces=("s*",), clusters=()), Place(users=("ann@*",), clusters=("dev",))), "b"),
    ((Place(namespaces=("%",)), Place(users=("_nn@example.com", "?nn*", "[a]nn*"))), ""),
    ((Place(owner="ann@example.com"),), "ba"),
    ((Place(owner="ann@example.com", clusters=("dev",)),), "b"),
    ((Place(owner="runner"),), ""),  # a tagged node's name as a login name
    ((Place(owner_node="runner"),), "d"),
    ((Place(owner_node="laptop"),), ""),  # a user's node is nobody's tagged node
    ((Place(owner=""), Place(owner_node="")), ""),
    ((Place(users=("' OR 1=1 --",)), Place(owner="' OR '1'='1")), ""),
    ((AccessPlace(users=("ann@*",), clusters=("d*",)),), "b"),
]


def test_scopes(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        ids = {}
        for kept in (
            recording("ann@example.com", pod="a", namespace="x-1"),
            recording("ann@example.com", pod="b", cluster="dev"),
            recording("bob@example.com", pod="c", namespace=""),
            recording("runner", node="runner", tags=["tag:ci"], pod="d"),
        ):
            ids[kept.pod] = library.put(kept, (1.0, "same words")).id
            library.tell(
                api_event(
                    kept.user,
                    node=kept.node,
                    tags=kept.tags,
                    cluster=kept.cluster,
                    namespace=kept.namespace,
                    name=kept.pod,
                    received=kept.started,
                )
            )
        await index.settled()
        for scope, visible in SCOPES:
            assert (scope, "".join(await pods(index, "", scope))) == (scope, visible)
            assert (scope, "".join(await pods(index, "same", scope))) == (scope, visible)
            events = await index.events(EventFilter(), scope)
            assert (scope, "".join(event.name for event in events.items)) == (scope, visible)
            (bucket,) = await index.activity(scope, START - 1, START + 1e6, 1)
            assert (scope, bucket.recordings, bucket.events) == (scope, len(visible), len(visible))
            facets = await index.facets(scope)
            assert sum(number for _, number in facets["user"]) == len(visible)
            for pod, identifier in ids.items():
                if pod in visible:
                    assert (await index.get(identifier, scope)).recording.pod == pod
                else:
                    with pytest.raises(KeyError):
                        await index.get(identifier, scope)
                    with pytest.raises(KeyError):
                        await index.related(identifier, scope)
            for event in (await index.events(EventFilter(), ALL)).items:
                if event.name in visible:
                    assert (await index.event(event.id, scope)).document == event.document
                else:
                    with pytest.raises(KeyError):
                        await index.event(event.id, scope)

    run(url, test)


def test_tags_of_nothing_are_tags_all_the_same(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        library.put(recording("ann@example.com", node="laptop", tags=["", " "], pod="a"), (1.0, "x"))
        library.tell(api_event("ann@example.com", tags=[""]))
        for scope, visible in (((Place(owner="ann@example.com"),), []), ((Place(owner_node="laptop"),), ["a"])):
            assert await pods(index, "", scope) == visible
            assert len((await index.events(EventFilter(), scope)).items) == len(visible)
        (row,) = (await index.recordings(Filter(), ALL)).items
        assert row.recording.tags == ("", " ")

    run(url, test)


def test_running_ones_are_searched_where_they_may_be_watched(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(index: Index, library: Library) -> None:
        monkeypatch.setattr(index._intake.texts, "refresh", 0.0)
        library.put(recording(pod="a"), (1.0, "same words"))
        for pod, space in (("b", "shop"), ("c", "bank")):
            library.put(recording(pod=pod, namespace=space, end=End.RUNNING, ended=None), (1.0, "same words"))
        await index.settled()
        for watched, visible in (
            (None, "cba"),
            (ALL, "cba"),
            ((), "a"),
            ((Place(namespaces=("shop",)),), "ba"),
            ((Place(namespaces=("sh*",)), Place(owner="ann@example.com")), "cba"),
        ):
            for asked, expected in ((Filter(text="same"), visible), (Filter(pod="*"), "cba")):
                page = await index.recordings(asked, ALL, watched=watched)
                assert "".join(row.recording.pod for row in page.items) == expected, (watched, asked)
            page = await index.recordings(Filter(text="same"), (Place(namespaces=("bank",)),), watched=watched)
            assert "".join(row.recording.pod for row in page.items) == visible.replace("a", "").replace("b", "")

    run(url, test)


def test_pages(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        for number in range(7):  # three of them at the same moment
            library.put(recording(pod=f"{number}", started=START + (0 if number < 3 else number)), (1.0, "word"))
            library.tell(api_event(name=f"{number}", received=START + (0 if number < 3 else number)))
        await index.settled()
        for asked in (Filter(), Filter(text="word")):
            found, cursor = [], None
            while True:
                page = await index.recordings(asked, ALL, limit=3, cursor=cursor)
                found.append("".join(row.recording.pod for row in page.items))
                if (cursor := page.cursor) is None:
                    break
            assert found[0] == "654"
            assert sorted("".join(found)) == list("0123456")
        first = await index.events(EventFilter(), ALL, limit=4)
        assert "".join(event.name for event in first.items)[:3] == "654"
        rest = await index.events(EventFilter(), ALL, limit=4, cursor=first.cursor)
        assert rest.cursor is None
        assert len({event.id for event in first.items + rest.items}) == 7
        exactly = await index.recordings(Filter(), ALL, limit=7)
        assert (len(exactly.items), exactly.cursor) == (7, None)
        assert first.cursor is not None
        assert (await index.events(EventFilter(), (), cursor=first.cursor)).items == ()
        for wrong in ("x", "1 OR 1=1", "-1", "", "١", "9" * 19):
            with pytest.raises(ValueError, match="cursor"):
                await index.recordings(Filter(), ALL, cursor=wrong)
        for limit in (0, 1001):
            with pytest.raises(ValueError, match="page"):
                await index.recordings(Filter(), ALL, limit=limit)

    run(url, test)


def test_events(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        library.tell(api_event(verb="delete", resource="secrets", name="db", namespace="kube-system"))
        library.tell(api_event("bob@example.com", verb="get", name="web-0"))
        library.tell(api_event("ci", node="runner", tags=["tag:ci"], verb="list", name=""))
        await index.settled()
        for asked, found in [
            (EventFilter(), ["list", "get", "delete"]),
            (EventFilter(verb="delete"), ["delete"]),
            (EventFilter(resource="pods"), ["list", "get"]),
            (EventFilter(name="web-*"), ["get"]),
            (EventFilter(namespace="kube-*"), ["delete"]),
            (EventFilter(path="*/secrets/*"), ["delete"]),
            (EventFilter(path="/api/v1/namespaces/shop/pods/web-0"), ["get"]),
            (EventFilter(tag="tag:ci"), ["list"]),
            (EventFilter(user="bob@example.com", cluster="prod"), ["get"]),
            (EventFilter(node="runner", subresource=""), ["list"]),
            (EventFilter(subresource="exec"), []),
        ]:
            rows = (await index.events(asked, ALL)).items
            assert (asked, [row.verb for row in rows]) == (asked, found)
        (row,) = (await index.events(EventFilter(tag="tag:ci"), ALL)).items
        assert (row.tags, row.node, row.sender, row.method) == (("tag:ci",), "runner", "proxy", "GET")
        assert row.document == library.told[2].document

    run(url, test)


def test_related_events(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        kept = library.put(recording(started=START, ended=START + 60, session_id="s1"))
        tagged = recording("runner", node="runner", tags=["tag:ci"], started=START, end=End.RUNNING, ended=None)
        library.put(tagged)
        library.tell(api_event(name="before", received=START - 1))
        library.tell(api_event(name="during", received=START + 5))
        library.tell(api_event(name="session", received=START + 90, session_id="s1"))
        library.tell(api_event(name="elsewhere", received=START + 6, node="phone"))
        library.tell(api_event("bob@example.com", name="bob", received=START + 7))
        library.tell(api_event(name="hidden", received=START + 8, namespace="kube-system"))
        library.tell(api_event(node="runner", tags=["tag:ci"], name="ci", received=START + 9))
        await index.settled()
        assert [event.name for event in await index.related(kept.id, ALL)] == ["during", "hidden", "session"]
        narrow = (Place(namespaces=("shop",)),)
        assert [event.name for event in await index.related(kept.id, narrow)] == ["during", "session"]
        assert [event.name for event in await index.related(tagged.id, ALL)] == ["ci"]

    run(url, test)


def test_activity_and_facets(url: str) -> None:
    async def test(index: Index, library: Library) -> None:
        for second in (0, 1, 9, 10, 25):
            library.put(recording(f"u{second % 2}@example.com", started=START + second), (1.0, f"w{second}"))
        library.tell(api_event(received=START + 19.999))
        await index.settled()
        buckets = await index.activity(ALL, START, START + 30, 3)
        assert [(bucket.recordings, bucket.events) for bucket in buckets] == [(3, 0), (1, 1), (1, 0)]
        assert [(bucket.start - START, bucket.end - START) for bucket in buckets] == [(0, 10), (10, 20), (20, 30)]
        narrowed = await index.activity(ALL, START, START + 30, 3, asked=Filter(text="w1", user="u1@*"))
        assert [bucket.recordings for bucket in narrowed] == [1, 0, 0]
        facets = await index.facets(ALL)
        assert facets["user"] == [("u1@example.com", 3), ("u0@example.com", 2)]
        assert facets["cluster"] == [("prod", 5)]
        for wrong in ((START, START, 3), (START, START + 1, 0), (START, START + 1, 2001)):
            with pytest.raises(ValueError, match="activity"):
                await index.activity(ALL, *wrong)

    run(url, test)


def test_looks(url: str) -> None:
    ann = Peer("100.64.0.1", "n1", "laptop.", login_name="ann@example.com")
    runner = Peer("100.64.0.2", "n2", "runner.", tags=("tag:ci",), login_name="tagged-devices")

    async def test(index: Index, library: Library) -> None:
        shop = library.put(recording(namespace="shop"))
        other = library.put(recording(namespace="other"))
        await index.settled()
        looks = [
            await index.add_look(ann, "view", shop.id, START),
            await index.add_look(runner, "export", other.id, START, detail=".cast\0"),
            await index.add_look(ann, "search", "", START + 1, detail="password"),
        ]
        happened = api_event(namespace="shop")
        library.tell(happened)
        await index.settled()
        at_event = await index.add_look(ann, "event", "", START - 1, detail=happened.id)
        shop_only = (Place(namespaces=("shop",)),)
        assert (await index.looks(LookFilter(), shop_only)).items == (looks[0], at_event)
        assert (await index.looks(LookFilter(kind="event"), shop_only)).items == (at_event,)
        assert (await index.looks(LookFilter(kind="event"), (Place(namespaces=("bank",)),))).items == ()
        # What was searched for is no id of an event, whatever it is spelled like.
        looks.append(await index.add_look(ann, "search", "", START - 2, detail=happened.id))
        assert (await index.looks(LookFilter(kind="search"), shop_only)).items == ()
        looks.append(at_event)
        page = await index.looks(LookFilter(), ALL)
        assert page.items[0] == looks[2]
        assert {look.id for look in page.items} == {look.id for look in looks}
        assert [look.tags for look in page.items if look.kind == "export"] == [("tag:ci",)]
        assert (await index.looks(LookFilter(user="ann@*", kind="view"), ALL)).items == (looks[0],)
        assert [look.user for look in (await index.looks(LookFilter(recording=other.id), ALL)).items] == [""]
        assert (await index.looks(LookFilter(), ())).items == ()
        first = await index.looks(LookFilter(), ALL, limit=1)
        assert len((await index.looks(LookFilter(until=START + 0.5), ALL, limit=5, cursor=first.cursor)).items) == 4
        library.remove(shop.id)
        await index.settled()
        assert len((await index.looks(LookFilter(), ALL)).items) == 5  # what was looked at may go, the look stays
        assert (await index.looks(LookFilter(), shop_only)).items == (at_event,)

    run(url, test)


def test_many_looks_at_once(url: str) -> None:
    ann = Peer("100.64.0.1", "n1", "laptop.", login_name="ann@example.com")

    async def test(index: Index, library: Library) -> None:
        await asyncio.gather(*(index.add_look(ann, "view", "", START) for _ in range(5)))
        assert len((await index.looks(LookFilter(), ALL)).items) == 5

    run(url, test)
