"""What is asked: a request's target, its query, its RequestInfo, and the kind of session it starts. Pure."""
