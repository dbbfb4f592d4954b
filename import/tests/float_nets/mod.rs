//! Float graphs made by hand, with random integers for everything in them, and an independent
//! calculation of what they give: channels first, plain loops, each formula written out.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm
)]

pub mod net;
pub mod plain;
pub mod suite;
