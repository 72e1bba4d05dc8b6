//! What the inside of a virtual machine tells the outside, a line of JSON each.

use serde::{Deserialize, Serialize};

/// One line of the second serial port.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// The guest is up, and everything is mounted.
    Booted,
    /// A step has ended.
    Step { name: String, outcome: Outcome },
    /// All steps have; without this line the machine died on the way.
    End,
}

/// What a step came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// Names.
    pub(super) passed: Vec<String>,
    /// Names, with a reason where there is one.
    pub(super) failed: Vec<String>,
}

/// What the demo must say for its calls to have gone as they should: what it is, and the words in the captured
/// client's column or below.
const DEMO: [(&str, &str); 6] = [
    ("a permitted call is answered", "result: The sum of 2 and 40 is 42."),
    ("a denied tool is explained", "error: toolgate: policy does not permit this"),
    ("a denied argument is explained", "error: toolgate: policy does not permit these"),
    ("the list is filtered", "2: echo, get-sum"),
    ("each denial is recorded", "\"reason\":\"arguments_refused\""),
    ("nothing is left behind", "Nothing is left behind"),
];

impl Outcome {
    /// Reads the lines of Rust's test harness: `test NAME ... ok`.
    pub(super) fn of_tests(lines: &[String]) -> Self {
        let mut outcome = Self::default();
        let mut counted = false;
        for line in lines {
            counted |= line.starts_with("test result: ");
            let Some(line) = line.strip_prefix("test ") else { continue };
            match line.split_once(" ... ") {
                Some((name, "ok")) => outcome.passed.push(name.to_owned()),
                Some((name, "FAILED")) => outcome.failed.push(name.to_owned()),
                Some((name, other)) => outcome.failed.push(format!("{name}: {other}")),
                None => {}
            }
        }
        if !counted {
            outcome.failed.push("the tests did not come to their end".to_owned());
        } else if outcome.passed.is_empty() && outcome.failed.is_empty() {
            outcome.failed.push("there was no test".to_owned());
        }
        outcome
    }

    /// Reads what the test that makes every program run says of each: `fired: NAME COUNT`.
    pub(super) fn of_programs(lines: &[String]) -> Self {
        let mut outcome = Self::default();
        for line in lines {
            let Some((_, said)) = line.split_once("fired: ") else { continue };
            match said.split_once(' ') {
                Some((name, "0")) => outcome.failed.push(format!("`{name}` never ran")),
                Some((name, _count)) => outcome.passed.push(name.to_owned()),
                None => {}
            }
        }
        if !lines.iter().any(|line| line.starts_with("test result: ok")) {
            outcome.failed.push("its test failed: see the console".to_owned());
        } else if outcome.passed.is_empty() {
            outcome.failed.push("no program was counted".to_owned());
        }
        outcome
    }

    /// Looks for what the demo must say. Of two columns the left one counts: the captured client.
    pub(super) fn of_demo(lines: &[String]) -> Self {
        let captured: Vec<_> =
            lines.iter().map(|line| line.split(" | ").next().unwrap_or_default()).collect();
        let mut outcome = Self::default();
        for (what, words) in DEMO {
            let found = captured.iter().any(|line| line.contains(words));
            let list = if found { &mut outcome.passed } else { &mut outcome.failed };
            list.push(what.to_owned());
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::Outcome;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn tests_are_counted_and_silence_is_no_success() {
        let check = |text: &str, passed: usize, failed: usize| {
            let outcome = Outcome::of_tests(&lines(text));
            assert_eq!((outcome.passed.len(), outcome.failed.len()), (passed, failed), "{text}");
        };
        check("", 0, 1);
        check("running 0 tests\ntest result: ok. 0 passed", 0, 1);
        check("test a ... ok\ntest b::c ... ok\ntest result: ok. 2 passed", 2, 0);
        check("test a ... ok\ntest b ... FAILED\ntest result: FAILED. 1 passed", 1, 1);
        check("test a ... ok", 1, 1);
        check("test a ... ignored\ntest result: ok. 0 passed", 0, 1);
    }

    #[test]
    fn what_the_other_client_gets_does_not_count() {
        let outcome = Outcome::of_demo(&lines("  error: something | result: The sum of 2 and 40 is 42."));
        assert!(outcome.passed.is_empty());
        let outcome = Outcome::of_demo(&lines("  result: The sum of 2 and 40 is 42. | result: other"));
        assert_eq!(outcome.passed, ["a permitted call is answered"]);
    }

    #[test]
    fn a_program_that_never_ran_is_red() {
        let said = "test every_program_fires ... fired: connect4 3\nfired: sk_lookup 0\nFAILED\ntest result: FAILED.";
        let outcome = Outcome::of_programs(&lines(said));
        assert_eq!((outcome.passed, outcome.failed.len()), (vec!["connect4".to_owned()], 2));
        let outcome = Outcome::of_programs(&lines("fired: connect4 3\nok\ntest result: ok. 1 passed"));
        assert!(outcome.failed.is_empty());
        let outcome = Outcome::of_programs(&lines("ok\ntest result: ok. 1 passed"));
        assert_eq!(outcome.failed, ["no program was counted"]);
    }
}
