//! The server as clients meet it: over a socket, with a scripted engine behind it.

mod access;
mod chat;
mod completions;
mod fields;
mod http;
mod load;
mod page;
mod script;
mod wire;
