//! The decisions about rollouts: who is a canary, when a rollout goes on, and when it is taken back.

#![allow(clippy::unwrap_used, reason = "a test")]

mod applied;
mod cases;
mod commands;
mod elsewhere;
mod freeze;
mod immediate;
mod losses;
mod members;
mod model;
mod successors;
mod world;
