//! Checks in virtual time.

use std::net::SocketAddr;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

static ORIGIN: LazyLock<Instant> = LazyLock::new(|| {
    #[expect(
        clippy::disallowed_methods,
        reason = "an origin that virtual time is counted from"
    )]
    Instant::now()
});

const MS: Duration = Duration::from_millis(1);

fn target(number: u16, check: &str) -> Target {
    Target {
        at: SocketAddr::from(([10, 0, 0, 1], number)),
        check: check.parse().unwrap(),
    }
}

fn targets(list: &[(Target, bool)]) -> BTreeMap<Target, bool> {
    list.iter().cloned().collect()
}

/// Checks and a clock that goes from one event to the next.
struct Lab {
    checks: Checks,
    now: Instant,
}

impl Lab {
    fn new(seed: u64, limit: usize, list: &[(Target, bool)]) -> Self {
        let mut checks = Checks::new(seed, limit);
        checks.handle_targets(&targets(list), *ORIGIN);
        Self {
            checks,
            now: *ORIGIN,
        }
    }

    /// The next question, at its time.
    fn ask(&mut self) -> Question {
        loop {
            if let Some(question) = self.checks.poll_probe(self.now) {
                return question;
            }
            self.now = self
                .now
                .max(self.checks.poll_timeout().expect("a next question"));
        }
    }

    /// Asks and answers once.
    fn turn(&mut self, works: bool) {
        let question = self.ask();
        let result = if works {
            Ok(())
        } else {
            Err("refused".to_owned())
        };
        self.checks.handle_result(&question, result, self.now);
    }

    fn verdict(&self) -> Verdict {
        self.checks.standings().values().next().unwrap().verdict
    }
}

#[test]
fn the_first_answer_of_a_new_backend_decides() {
    for (works, verdict) in [(true, Verdict::Healthy), (false, Verdict::Unhealthy)] {
        let mut lab = Lab::new(1, 8, &[(target(1, "tcp unhealthy=5 healthy=5"), false)]);
        assert_eq!(lab.verdict(), Verdict::Pending);

        lab.turn(works);

        assert_eq!(lab.now, *ORIGIN, "asked at once");
        assert_eq!(lab.verdict(), verdict);
        assert_eq!(
            lab.checks.poll_change().map(|change| change.verdict),
            Some(verdict)
        );
    }
}

#[test]
fn a_backend_that_carries_traffic_leaves_only_by_its_threshold() {
    let mut lab = Lab::new(1, 8, &[(target(1, "tcp unhealthy=3 healthy=2"), true)]);
    for works in [false, false, true, false, false] {
        lab.turn(works);
        assert_eq!(
            lab.verdict(),
            Verdict::Healthy,
            "a success begins the row anew"
        );
    }

    lab.turn(false);

    assert_eq!(lab.verdict(), Verdict::Unhealthy);
    let change = lab.checks.poll_change().unwrap();
    assert_eq!(
        (change.verdict, change.failure.as_deref()),
        (Verdict::Unhealthy, Some("refused"))
    );
    assert_eq!(lab.checks.poll_change(), None);
    for works in [true, false, true, true] {
        assert_eq!(lab.verdict(), Verdict::Unhealthy);
        lab.turn(works);
    }
    assert_eq!(lab.verdict(), Verdict::Healthy);
}

#[test]
fn a_backend_that_flaps_faster_than_its_thresholds_changes_nothing() {
    let mut lab = Lab::new(1, 8, &[(target(1, "tcp unhealthy=2 healthy=2"), true)]);

    for turn in 0..1000 {
        lab.turn(turn % 2 == 0);
    }

    assert_eq!(lab.verdict(), Verdict::Healthy);
    assert_eq!(lab.checks.poll_change(), None);
}

#[test]
fn no_more_than_the_limit_are_asked_and_the_one_that_waited_longest_is_next() {
    let list: Vec<_> = (1..=10).map(|n| (target(n, "tcp"), false)).collect();
    let mut lab = Lab::new(1, 4, &list);
    let mut asked: Vec<_> = std::iter::from_fn(|| lab.checks.poll_probe(lab.now)).collect();
    assert_eq!(asked.len(), 4);
    assert_eq!(
        lab.checks.poll_timeout(),
        None,
        "nothing to do until an answer comes"
    );

    let mut met = 0;
    while let Some(question) = asked.pop() {
        met += 1;
        lab.now += MS;
        lab.checks.handle_result(&question, Ok(()), lab.now);
        if met <= 6 {
            asked.push(lab.checks.poll_probe(lab.now).expect("the next one"));
        }
        assert!(asked.len() <= 4);
    }

    let verdicts = lab
        .checks
        .standings()
        .values()
        .map(|standing| standing.verdict);
    assert!(verdicts.eq([Verdict::Healthy; 10]));
}

#[test]
fn what_is_taken_away_is_not_asked_and_its_late_answer_counts_for_nothing() {
    let one = target(1, "tcp");
    let mut lab = Lab::new(1, 8, &[(one.clone(), false)]);
    let question = lab.ask();
    lab.checks.handle_targets(&BTreeMap::new(), lab.now);
    assert_eq!(lab.checks.poll_timeout(), None);
    // Put back before the old answer comes.
    lab.checks
        .handle_targets(&targets(&[(one, false)]), lab.now);

    lab.checks
        .handle_result(&question, Err("refused".to_owned()), lab.now);

    assert_eq!(lab.verdict(), Verdict::Pending);
    assert_eq!(lab.checks.poll_change(), None);
    lab.turn(true);
    assert_eq!(lab.verdict(), Verdict::Healthy);
}

#[test]
fn what_stays_keeps_its_verdict_and_its_place_in_time() {
    let (one, two) = (target(1, "tcp"), target(2, "tcp"));
    let mut lab = Lab::new(1, 8, &[(one.clone(), false)]);
    lab.turn(false);
    let before = lab.checks.standings()[&one].clone();

    lab.checks
        .handle_targets(&targets(&[(one.clone(), true), (two, false)]), lab.now);

    assert_eq!(lab.checks.standings()[&one], before);
}

#[test]
fn a_thousand_targets_spread_over_their_interval_and_seeds_differ() {
    let list: Vec<_> = (1..=1000)
        .map(|n| (target(n, "tcp interval=1s"), false))
        .collect();
    let second_questions = |seed| {
        let mut lab = Lab::new(seed, 1000, &list);
        for _ in 0..1000 {
            lab.turn(true);
        }
        assert_eq!(lab.now, *ORIGIN);
        let due = lab
            .checks
            .standings()
            .values()
            .map(|standing| standing.next - *ORIGIN);
        due.collect::<Vec<_>>()
    };
    let due = second_questions(7);

    let mut tenths = [0; 10];
    for time in &due {
        assert!(!time.is_zero() && *time <= 1000 * MS, "{time:?}");
        tenths[(time.as_nanos() as usize - 1) / 100_000_000] += 1;
    }
    // Even: 100 each; 60 to 140 is four standard deviations.
    assert!(
        tenths.iter().all(|count| (60..=140).contains(count)),
        "{tenths:?}"
    );
    assert_eq!(due, second_questions(7), "the same seed, the same times");
    assert_ne!(due, second_questions(8));
}

proptest! {
    /// The verdict is what a plain reading of the rule says, whatever the answers.
    #[test]
    fn a_verdict_follows_the_rows_of_answers(
        answers in proptest::collection::vec(any::<bool>(), 1..200),
        unhealthy in 1_u32..5,
        healthy in 1_u32..5,
        carries_traffic: bool,
    ) {
        let check = format!("tcp unhealthy={unhealthy} healthy={healthy}");
        let mut lab = Lab::new(3, 8, &[(target(1, &check), carries_traffic)]);
        let mut is_up = carries_traffic.then_some(true);
        let mut row = (true, 0);
        for works in answers {
            row = if row.0 == works { (works, row.1 + 1) } else { (works, 1) };
            is_up = match is_up {
                None => Some(works),
                Some(true) if !works && row.1 >= unhealthy => Some(false),
                Some(false) if works && row.1 >= healthy => Some(true),
                is_up => is_up,
            };
            lab.turn(works);
            let verdict = if is_up == Some(true) { Verdict::Healthy } else { Verdict::Unhealthy };
            prop_assert_eq!(lab.verdict(), verdict);
        }
    }

    /// However late answers come: a target is asked once at a time, never early, and what is late does not move
    /// its place in the interval.
    #[test]
    fn questions_keep_their_distance(
        delays in proptest::collection::vec(0_u64..3000, 2..60),
        seed: u64,
    ) {
        let interval = 1000 * MS;
        let mut lab = Lab::new(seed, 8, &[(target(1, "tcp interval=1s"), false)]);
        let mut place = None;
        let mut due = *ORIGIN;
        for delay in delays {
            let question = lab.ask();
            prop_assert!(lab.now >= due, "early");
            due = lab.checks.standings().values().next().unwrap().next;
            prop_assert!(due > lab.now && due <= lab.now + interval);
            let place = *place.get_or_insert(due);
            prop_assert_eq!((due - place).as_nanos() % interval.as_nanos(), 0);
            prop_assert_eq!(lab.checks.poll_probe(lab.now + 10 * interval), None, "twice at a time");
            lab.now += Duration::from_millis(delay);
            lab.checks.handle_result(&question, Ok(()), lab.now);
        }
    }
}
