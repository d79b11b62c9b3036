//! `dpctl trace`: what would become of a packet, and why.

use anyhow::Result;

use super::Outcome;
use super::args::{Global, TraceArgs};
use super::render::{print, say};
use super::tables::pins;
use crate::api::client;
use crate::api::types::{Trace, TraceQuestion};
use crate::view::View;

/// Asks the agent, or the tables by their pins when it is down, and prints. A packet that is dropped is a "no".
pub async fn run(global: &Global, typed: TraceArgs) -> Result<Outcome> {
    let question = TraceQuestion {
        device: typed.device,
        src: typed.src,
        dst: typed.dst,
        proto: typed.proto,
        flags: typed.flags,
        ttl: typed.ttl,
        size: typed.size,
        wrapped_by: typed.wrapped_by,
        wrapped_for: typed.wrapped_for,
    };
    let trace = if client::is_there(&global.socket).await {
        client::ask(&global.socket, &path(&question)).await?
    } else {
        say(
            "the agent does not answer; the tables are read by their pins, so nothing is called by its name",
        );
        View::of_pins(pins(global).await?)?.trace(&question)?
    };
    print(global, &trace, |_| text(&trace))?;
    if let Some(disagreement) = &trace.disagreement {
        say(&format!(
            "the program and this explanation DISAGREE: {disagreement}"
        ));
    }
    Ok(if trace.verdict == "drop" {
        Outcome::No
    } else {
        Outcome::Yes
    })
}

fn path(question: &TraceQuestion) -> String {
    let mut path = format!(
        "/v1/trace?device={}&src={}&dst={}&proto={}&flags={}&ttl={}&size={}",
        question.device,
        question.src,
        question.dst,
        question.proto,
        question.flags,
        question.ttl,
        question.size
    );
    for (name, addr) in [
        ("wrappedBy", question.wrapped_by),
        ("wrappedFor", question.wrapped_for),
    ] {
        path.extend(addr.map(|addr| format!("&{name}={addr}")));
    }
    path
}

fn text(trace: &Trace) -> String {
    let mut text = String::new();
    let mut line = |name: &str, words: &str| text += &format!("{name:<13}{words}\n");
    line("packet", &trace.packet.join(" | "));
    for stage in &trace.stages {
        line(&stage.name, &stage.text);
    }
    line("reason", &trace.reason);
    // A dropped or passed packet is as it was.
    if trace.verdict == "forward" {
        line("sent", &trace.result.join(" | "));
    }
    text
}
