"""The formats that the proxy writes and the recorder reads: casts, API events, the recorder's wire. Pure."""
