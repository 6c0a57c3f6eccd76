"""What is kept of a session: the tap beside the bytes, and the recorder it is sent to."""
