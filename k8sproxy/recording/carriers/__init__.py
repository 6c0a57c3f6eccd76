"""The two versions of the recorder's wire: HTTP/1.1 (v1, and events) and HTTP/2 (v2)."""
