//! `POST /tokenize` and `/detokenize`.
