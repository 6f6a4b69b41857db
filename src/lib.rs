//! koala-agent collects customer events from files in a spool folder and delivers each of them to Koala once.
//!
//! # The way of an event
//!
//! ```text
//!   a program          spool/               outbox.db                        receiver
//!       │                │                      │                               │
//!       └─ drops a file ─▶ agent::intake ──────▶│◀──── agent::sender ──────────▶│
//!                          reads and checks it, │      batches a person's events,│
//!                          stores its events,   │      maps and sends them,     │
//!                          removes it           │      acknowledges deliveries  │
//! ```
//!
//! # The main road
//!
//! These files, in this order, are the way of an event from the spool to the receiver and back; everything else can be
//! read when it is needed. A test prints the road's length.
//!
//! 1. `agent/intake.rs`: the loop that scans the spool and acts on what its files hold
//! 1. `spool/mod.rs`: the folder, and the only way to open a file in it
//! 1. `agent/file_reader.rs`: one file as a sequence of steps
//! 1. `event/mod.rs`: the meaning of an event's text
//! 1. `agent/new_event.rs`: from the text to an event with an id and a disposition
//! 1. `agent/append_batch.rs`: the events of one commit, and how far they bring their files
//! 1. `outbox/writer.rs`: the handle to the one thread that writes
//! 1. `outbox/writer_thread.rs`: one commit for all commands that wait
//! 1. `outbox/append.rs`: events become rows, and none is stored twice
//! 1. `agent/remover.rs`: a file that is stored leaves the spool
//! 1. `agent/sender.rs`: the loop that joins the scheduler, the batcher and the client
//! 1. `agent/scheduler.rs`: whose events are sent next, and what an answer means for them
//! 1. `agent/batcher.rs`: from pending events to a request
//! 1. `outbox/queue_reader.rs`: the pending events as they are read
//! 1. `mapping/mappings.rs`: which mappings want an event, and what they make of it
//! 1. `item.rs`: an event's part of a request, and whose it is
//! 1. `koala/batch.rs`: items become the body of a request
//! 1. `koala/client.rs`: the request on the wire
//! 1. `koala/verdict.rs`: what an answer means, decided once
//! 1. `outbox/transitions.rs`: events change their state, along legal arrows only
//!
//! # The rooms, from the ground up
//!
//! Each uses only those above it; `mapping`, `koala` and `outbox` do not know each other. A test holds that.
//!
//! - [`reason`]: why something is in its state: a code from a closed list, and a text for a person
//! - [`clock`]: all time; tests own it
//! - [`event`]: events, their ids, and JSON as it was written
//! - [`subject`]: the person whom a request for erasure means
//! - [`item`]: one event's part of a request, and whose it is
//! - [`mapping`]: from events to items: triggers, actions, fields
//! - [`disk`]: free space on a file system
//! - [`limits`]: the limits that the system sets to this process
//! - [`config`]: the settings in force, and the key
//! - [`status`]: what the agent reports about itself
//! - [`telemetry`]: the log
//! - [`receiver`]: the built-in receiver, for the demonstration, the tests, and trying things out
//! - [`spool`]: the folder that files are dropped into
//! - [`koala`]: requests to Koala, the client, and what an answer means
//! - [`outbox`]: the database; all SQL
//! - [`agent`]: the loops, and the pure decision about what is sent next
//! - [`cli`]: the commands; the only room that prints
//!
//! # What never happens
//!
//! In this order: nothing is lost, nothing is sent twice by our doing, everything can be seen, all of it is fast.
//!
//! - A spool file is never removed before the commit that holds its events has succeeded (`agent::intake`), and the file
//!   that is removed is never another than the one that was read ([`spool`]).
//! - An event is never stored under two ids, nor two events under one ([`outbox`]).
//! - Two requests are never in flight for one person, and a person's events never overtake each other
//!   (`agent::scheduler`).
//! - Temporary trouble never changes the state of an event. An event fails only by its mapping, or if the receiver refuses
//!   it again and again while it is proven to accept others (`agent::suspicion`).
//! - One person's trouble never stops another's events, until there is proof that it is everybody's (`agent::path`).
//! - Nothing is sent while accepted events cannot be acknowledged (`agent::sender`).
//! - The key never leaves [`config::PublicKey`] except into the address of a request, and by `init` into its file.
//!
//! # Our words
//!
//! The terms are the field's. These few are ours, because the usual word means too many things here:
//!
//! | ours | meaning | usual word |
//! |---|---|---|
//! | spool | the folder that programs drop event files into | drop folder, inbox |
//! | outbox | the database of events between their file and their delivery | queue, buffer |
//! | intake | the loop that moves events from the spool into the outbox | ingester |
//! | receiver | the server that events are sent to, whoever runs it | endpoint, upstream |
//! | verdict | the meaning of a receiver's answer | result |
//! | subject | the person whom a request for erasure means | data subject |
//! | incident | damage that was repaired and that a person should know of | – |

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
