"""What is told about requests: API events, with secrets taken out, in queues with a share for each peer."""
