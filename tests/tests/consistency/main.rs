//! Proof of connection consistency: fleets of nodes under random schedules, in memory and on the real bytecode.
//!
//! Backends come, go, drain and change their weight; nodes join, leave, restart and lag behind each other; routers
//! spread flows anew. After each event every connection sends a packet, and the law (`law`) says whether it
//! may go anywhere but home.

mod bytecode;
mod datapath;
mod figures;
mod fleet;
mod law;
mod schedule;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use bytecode::{Instance, Twin};
use datapath::{Design, Model};
use fairlead_tests::{kernel, root};
use fleet::Fleet;
use law::{Cause, Tally};
use schedule::{SIZES, Schedule, schedule};

/// More flows than any schedule begins.
const ROOMY: usize = 1 << 20;

fn run(schedule: &Schedule, design: Design, remembers: usize) -> Result<Tally, String> {
    let world = schedule.world.clone();
    let make = move |_| Model::new(design, remembers);
    let mut fleet = Fleet::new(SIZES, schedule.nodes, world, make);
    schedule.run(&mut fleet)?;
    Ok(fleet.tally)
}

proptest! {
    #![proptest_config(Config::with_cases(96))]

    #[test]
    fn a_connection_to_a_live_backend_moves_for_stated_causes_only(schedule in schedule(4..40)) {
        run(&schedule, Design::RingFirst, ROOMY).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn flows_beyond_what_is_remembered_move_as_older_ones(schedule in schedule(4..24)) {
        run(&schedule, Design::RingFirst, 8).map_err(TestCaseError::fail)?;
    }
}

/// Schedules, the same ones each time.
fn schedules() -> impl Iterator<Item = Schedule> {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    std::iter::repeat_with(move || {
        let tree = schedule(16..40).new_tree(&mut runner);
        tree.expect("a schedule").current()
    })
}

#[test]
fn every_stated_cause_occurs_and_most_packets_have_none() {
    let mut tally = Tally::default();
    for schedule in schedules().take(120) {
        tally.add(&run(&schedule, Design::RingFirst, 8).unwrap());
    }

    for cause in Cause::ALL {
        assert!(
            tally.moved.contains_key(&cause),
            "{cause:?} never occurs: {tally:?}"
        );
    }
    assert!(tally.bound * 2 > tally.packets, "{tally:?}");
}

#[test]
fn the_law_sees_designs_that_break_it() {
    for design in [
        Design::RingAlone,
        Design::TablePerNode,
        Design::Forgetful,
        Design::Heartless,
    ] {
        let outcomes = schedules()
            .take(50)
            .map(|schedule| run(&schedule, design, ROOMY));
        let broken = outcomes.filter(Result::is_err).count();

        assert!(broken > 0, "{design:?} obeys the law");
    }
}

#[test]
fn the_bytecode_chooses_as_the_model_under_random_schedules() {
    if !root::is_root() {
        return;
    }
    kernel::bare_place();
    let _attached = Instance::attached();
    let mut runner = TestRunner::new(Config {
        cases: 3,
        max_shrink_iters: 16,
        ..Config::default()
    });
    runner
        .run(&schedule(24..48), |schedule| {
            let world = schedule.world.clone();
            let mut fleet = Fleet::new(SIZES, schedule.nodes, world, |_| Twin::new());
            schedule.run(&mut fleet).map_err(TestCaseError::fail)?;
            fleet.datapaths().for_each(Twin::check);
            Ok(())
        })
        .unwrap();
}
