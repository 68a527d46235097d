//! The message for each kind of error, by table of the file.

use super::*;

mod acme;
mod alternate;
mod auth;
mod fleet;
mod front;
mod general;
mod http_keys;
mod keys;
mod listen;
mod offload;
mod peers;
mod relay;
mod syntax;
