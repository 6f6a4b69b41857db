//! The README, the manual pages and the packaged configuration describe the program: their examples are run, the output
//! that they show is compared with the program's, and so are their lists.
//!
//! ```text
//! text           examples and lists, taken out of the README and the pages
//! run            the program, a receiver and a shell, in folders of the test
//! pages          each page as a whole, and the README's links
//! configuration  koala-agent.toml(5)
//! mappings       koala-agent-mappings(7)
//! spool          koala-agent-spool(7)
//! commands       koala-agent(1), the README's commands, backup, space
//! ```
//!
//! The lists of koala-agent(1) are compared with the command line in `src/cli/man.rs`.

mod commands;
mod configuration;
mod mappings;
mod pages;
pub mod run;
mod spool;
mod text;
