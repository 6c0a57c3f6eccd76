"""Where people look: pages and a JSON API over what is kept, for peers whose grants let them.

    request -> guard (host, origin, who) -> pages | api -> asked (questions inside the peer's scope, looks written down)
            -> archive (the index) and the store

Pages are made here and need little script: a player (asciinema's, vendored), fed in windows by `static/playback.js`.
Everything that was recorded, names included, is hostile: `words` makes it visible, templates escape it, the policy in
`guard` runs nothing that is not this package's, and nothing is loaded from elsewhere.
"""

from recorder.web.app import make_app
from recorder.web.guard import whois_finder
from recorder.web.site import Find, WebConfig

__all__ = ["Find", "WebConfig", "make_app", "whois_finder"]
