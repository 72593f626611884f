//! Ratemill as its users meet it: the program itself, real brokers, real object storage, other people's readers.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod batch;
mod corrections;
mod crash;
mod demo;
mod differential;
mod engine;
mod files;
mod http;
mod lake;
mod mqtt;
mod project;
mod regressions;
mod servers;
mod structure;
