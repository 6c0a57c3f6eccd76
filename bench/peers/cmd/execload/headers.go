package main

import "net/http"

type setting struct {
	name, value string
	next        http.RoundTripper
}

func (s *setting) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Add(s.name, s.value)
	return s.next.RoundTrip(r)
}

func withHeader(name, value string) func(http.RoundTripper) http.RoundTripper {
	return func(next http.RoundTripper) http.RoundTripper { return &setting{name, value, next} }
}
