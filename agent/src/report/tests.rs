use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::instance::Arrived;
use crate::metrics::sample::Series;
use crate::metrics::sample::tests::sample;
use crate::outcome::{Cause, Uploaded};

fn outcome(message: Option<&str>) -> InstanceOutcome {
    let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
    InstanceOutcome {
        task: "count".to_owned(),
        instance: 2,
        retries: 0,
        attempts: 1,
        state: if message.is_some() { State::Failed } else { State::Finished },
        exit_code: Some(i32::from(message.is_some())),
        signal: None,
        cause: message.map(|_| Cause::User),
        message: message.map(str::to_owned),
        started: at(0),
        ended: at(700),
        elapsed_ms: Some(600_000),
        usage: None,
        figures: Some(sample(600, 600.0, 2.5)),
        stdout: Some("oss://bucket/logs/stdout.job-1.count.2".to_owned()),
        stderr: None,
        outputs: Uploaded { files: 1, bytes: 5 << 20, failed: Vec::new() },
        reserved: None,
        exit_status: 0,
    }
}

fn evidence(text: &str) -> Evidence {
    let mut series = Series::default();
    for number in 0..140_u32 {
        let cpu = 2.0 + f64::from(number * number % 17) / 10.0;
        series.push(sample(i64::from(number) * 5, 5.0, cpu));
    }
    let arrived = Arrived {
        path: PathBuf::from(format!("/home/output/{text}")),
        location: format!("oss://bucket/{text}"),
        size: 5 << 20,
        crc64: String::new(),
        mode: 0o644,
        modified: None,
    };
    let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
    Evidence {
        recorded: crate::metrics::Recorded { series, program: None },
        stdout: format!("{text}\n"),
        stderr: String::new(),
        program: Some((at(60), at(660))),
        arrived: vec![arrived],
        beside: None,
    }
}

fn whole(text: &str, message: Option<&str>) -> String {
    let (mut outcome, evidence, command) = (outcome(message), evidence(text), [text.to_owned()]);
    outcome.outputs.failed.push(text.to_owned());
    let mut timeline = vec![Span {
        name: text.to_owned(),
        started: Timestamp::from_second(1_699_999_900).unwrap(),
        ended: None,
        failed: false,
        message: Some(text.to_owned()),
    }];
    timeline.extend(own_spans(&outcome, evidence.program));
    let events =
        vec![json!({"event": text, "subject": text, "message": text}), json!({"Event": text, "ErrorMessage": text})];
    page(&Subject { job: text, outcome: &outcome, evidence: &evidence, command: &command, timeline, events })
}

#[test]
fn a_page_needs_nothing_else_and_has_everything() {
    let page = whole("a quiet name", Some("it failed"));
    for part in [
        "it failed",
        "count.2",
        "Processors",
        "Memory",
        "Disks",
        "Network",
        "Space on disks",
        "preparing",
        "stdout",
        "5 MiB",
        "cause: user",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(page.contains("default-src 'none'") && page.matches("<svg viewBox=\"0 0 560").count() >= 5);
    for outside in ["http:", "https:", "src=", "href", "@import", "url(", "<script", "<link", "<iframe", "onload"] {
        let found =
            page.matches(outside).count() - page.matches("xmlns=\"http:").count() * usize::from(outside == "http:");
        assert_eq!(found, 0, "{outside}");
    }
}

#[test]
fn what_a_task_says_stays_text() {
    let hostile = "</pre><script>alert(1)</script><img src=x onerror='a' \"b\"> &amp; \u{202e}txt.exe \x1b[31m\r\0 ]]>";
    let page = whole(hostile, Some(hostile));
    assert!(
        !page.contains("<script") && !page.contains("<img") && !page.contains('\u{202e}') && !page.contains('\x1b')
    );
    assert!(
        page.contains("&lt;script&gt;alert(1)&lt;/script&gt;")
            && page.contains("&lt;202e&gt;")
            && page.contains("&amp;amp;")
    );
}

#[test]
fn a_program_that_never_ran_has_a_page_too() {
    let mut outcome = outcome(Some("no such package"));
    (outcome.exit_code, outcome.elapsed_ms, outcome.figures) = (None, None, None);
    let evidence = Evidence::default();
    let timeline = own_spans(&outcome, None);
    let subject =
        Subject { job: "job-1", outcome: &outcome, evidence: &evidence, command: &[], timeline, events: Vec::new() };
    let page = page(&subject);
    assert!(page.contains("the program never ran") && page.contains("no such package") && page.contains("(nothing)"));
}

/// The tags of a page, without what is in them.
fn tags(page: &str) -> Vec<String> {
    let name = |rest: &str| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '/' || *c == '!').collect();
    page.split('<').skip(1).map(name).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn no_text_makes_a_tag(text in any::<String>()) {
        let expected = tags(&whole("x", Some("x")));
        prop_assert_eq!(tags(&whole(&format!("x{text}"), Some(&format!("x{text}")))), expected);
    }
}
