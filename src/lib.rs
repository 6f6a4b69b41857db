//! koala-agent takes customer events from files in a spool folder and forwards them to Koala, once.
//!
//! # The way of an event
//!
//! ```text
//!   a program          spool/              outbox.db                        Koala
//!       │                │                     │                              │
//!       └─ drops a file ─▶ agent::intake ─────▶│◀── agent::sender ──────────▶│
//!                          reads, checks,      │    gathers a person's events,│
//!                          stores, removes     │    maps, sends, judges,      │
//!                                              │    settles                   │
//!
//!   spool → event → outbox → mapping → koala::batch → koala::client → koala::verdict → scheduler → outbox
//! ```
//!
//! # The modules, in reading order
//!
//! Each uses only those above it; `mapping`, `koala` and `outbox` do not know each other. A test holds that.
//!
//! - [`reason`]: why something is as it is: a code from a closed list, a sentence for a person
//! - [`clock`]: all time; tests own it
//! - [`event`]: what an event is: all meaning of its text
//! - [`subject`]: whose data an event is
//! - [`item`]: one event's part of a request, and whose it is
//! - [`mapping`]: from event to items: triggers, actions, fields
//! - [`disk`]: the room on a file system
//! - [`limits`]: the limits that the system sets to this process
//! - [`config`]: the settings in force, and the key
//! - [`status`]: what the agent tells about itself
//! - [`telemetry`]: the log
//! - [`receiver`]: a local Koala, for the demonstration, the tests, and trying things out
//! - [`spool`]: the folder that files are dropped into
//! - [`koala`]: requests, the client, and what an answer means
//! - [`outbox`]: the database; all SQL
//! - [`agent`]: the loops, and the pure judgement of what is sent next and what an answer does
//! - [`cli`]: the commands; the only place that prints
//!
//! # What never happens
//!
//! In this order: nothing is lost, nothing is sent twice by our doing, everything can be seen, all of it is fast.
//!
//! - A spool file never goes before the commit that holds its events has been answered (`agent::intake`), and never
//!   another file than the one that was read ([`spool`]).
//! - An event is never stored under two ids, nor two events under one ([`outbox`]).
//! - Two requests are never in flight for one person, and a person's events never overtake each other
//!   (`agent::scheduler`).
//! - An event never changes its state by temporary trouble, and never fails but by its mapping or by the receiver's
//!   refusal beside proof that it takes others (`agent::scheduler`).
//! - Nothing more is sent while what was accepted cannot be marked (`agent::sender`).
//! - The key never leaves [`config::PublicKey`] but into a request's address.

pub mod agent;
pub mod cli;
pub mod clock;
pub mod config;
pub mod disk;
pub mod event;
pub mod item;
pub mod koala;
pub mod limits;
pub mod mapping;
pub mod outbox;
pub mod reason;
pub mod receiver;
pub mod spool;
pub mod status;
pub mod subject;
pub mod telemetry;
