//! `POST /v1/completions`: a text in, its continuation out.
