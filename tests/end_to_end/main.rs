//! Ratemill as its users meet it: the program itself, real brokers, real object storage, other people's readers.
#![allow(clippy::unwrap_used)]

mod adopted;
mod audit;
mod bad_input;
mod batch;
mod changes;
mod conformance;
mod corrections;
mod crash;
mod demo;
mod differential;
mod engine;
mod examples;
mod explain_charge;
mod files;
mod fuzz;
mod http;
mod lake;
mod mqtt;
mod opening;
mod pending;
mod periods;
mod project;
mod regressions;
mod rules;
mod running;
mod running_table;
mod servers;
mod status;
mod structure;
mod upkeep;
mod tap;
mod unrated;
mod wrong_rules;
