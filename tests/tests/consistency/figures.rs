//! How many connections break, by what happens: the table of `docs/consistency.md`.

use std::collections::BTreeMap;
use std::time::Duration;

use fairlead_control::plan::maglev::Sizes;

use crate::datapath::{Design, Model};
use crate::fleet::{Fleet, World, draining, ready};
use crate::schedule::alike;

/// Connections to one service that are there before anything happens.
const OLD: u32 = 20_000;
/// Those that begin in between.
const YOUNG: u32 = 2_000;
/// Backends at the beginning, and nodes.
const BACKENDS: u8 = 10;
const NODES: u32 = 4;

type Trial = Fleet<Model>;

/// What happens, and to which of the connections it is told.
struct Story {
    name: &'static str,
    happens: fn(&mut Trial),
}

const STORIES: [Story; 9] = [
    Story {
        name: "a backend comes",
        happens: comes,
    },
    Story {
        name: "a backend drains",
        happens: drains,
    },
    Story {
        name: "a node joins, backends stay",
        happens: joins,
    },
    Story {
        name: "a backend comes; within the window routers spread flows anew",
        happens: |trial| {
            comes(trial);
            begin_more(trial);
            trial.reshard(7);
        },
    },
    Story {
        name: "a backend comes; within the window a node joins",
        happens: |trial| {
            comes(trial);
            begin_more(trial);
            joins(trial);
        },
    },
    Story {
        name: "a backend drains; within the window a node leaves",
        happens: |trial| {
            drains(trial);
            begin_more(trial);
            trial.leave(0);
        },
    },
    Story {
        name: "a backend comes, which two nodes see 5 s late; meanwhile routers spread flows anew",
        happens: |trial| {
            let lag = Duration::from_secs(5);
            trial.lag(0, lag);
            trial.lag(1, lag);
            comes(trial);
            begin_more(trial);
            trial.reshard(7);
        },
    },
    Story {
        name: "a backend comes; connections are older than the window when it ends",
        happens: |trial| {
            comes(trial);
            trial.advance(Duration::from_secs(61));
        },
    },
    Story {
        name: "the same; an hour later a node joins",
        happens: |trial| {
            comes(trial);
            trial.advance(Duration::from_hours(1));
            joins(trial);
        },
    },
];

fn comes(trial: &mut Trial) {
    trial.change(|world| each(world, |backends| backends.insert(BACKENDS, ready(1))));
}

fn drains(trial: &mut Trial) {
    trial.change(|world| each(world, |backends| backends.insert(0, draining(1))));
}

fn joins(trial: &mut Trial) {
    trial.join(Duration::ZERO);
}

fn begin_more(trial: &mut Trial) {
    trial
        .open(0, YOUNG)
        .expect("connections begin where they should");
}

fn each<R>(
    world: &mut World,
    change: impl Fn(&mut BTreeMap<u8, fairlead_control::desired::Backend>) -> R,
) {
    for backends in world {
        change(backends);
    }
}

/// The share of connections that break, in per cent.
fn broken(story: &Story, design: Design) -> f64 {
    let backends = (0..BACKENDS).map(|number| (number, ready(1))).collect();
    let mut trial = Fleet::new(Sizes::FLEET, NODES, alike(&backends), move |_| {
        Model::new(design, 1 << 18)
    });
    trial
        .open(0, OLD)
        .expect("connections begin where they should");
    // Nobody is idle: each node has seen its connections.
    assert_eq!(trial.broken(), 0);
    (story.happens)(&mut trial);
    let all = trial.connections.len() as u32;
    100.0 * f64::from(trial.broken() as u32) / f64::from(all)
}

fn table() -> String {
    const DESIGNS: [Design; 3] = [Design::RingAlone, Design::TablePerNode, Design::RingFirst];
    let mut table = "| what happens | ring alone | ring and a table on each node | Fairlead |\n|---|---|---|---|\n".to_owned();
    for story in &STORIES {
        let shares = DESIGNS.map(|design| format!("{:.2} %", broken(story, design)));
        table += &format!("| {} | {} |\n", story.name, shares.join(" | "));
    }
    table
}

#[test]
fn the_documented_figures_are_those_of_the_model() {
    let documented = include_str!("../../../docs/consistency.md");

    let table = table();

    assert!(
        documented.contains(&table),
        "docs/consistency.md must have this table:\n{table}"
    );
}
