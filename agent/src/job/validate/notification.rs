//! The rules for who is told what happens to a job.
//!
//! A job whose notification is wrong is run all the same: nobody wants to lose a night's work over a message. So everything here is a
//! warning.

use crate::events::Topic;
use crate::events::message::{NAMES, OF_THE_SERVICE};
use crate::events::topic::TopicError;
use crate::job::draft::DraftNotification;
use crate::job::finding::{At, Findings, nearest, quoted};

/// Nobody is told for this reason.
const NOBODY: &str = "nobody is told what happens; correct it, or remove the notification";

/// The topic that is to be told, if it is one.
pub(super) fn check(draft: &DraftNotification, findings: &mut Findings) -> Option<Topic> {
    let text = |written: &Option<At<String>>| written.clone().filter(|text| !text.value.is_empty());
    let (name, endpoint) = match (text(&draft.name), text(&draft.endpoint)) {
        // As SDKs write it when nothing was said.
        (None, None) => return None,
        (Some(name), Some(endpoint)) => (name, endpoint),
        (Some(_), None) => {
            findings.warn(&draft.place, "names a topic and no endpoint", NOBODY);
            return None;
        }
        (None, Some(_)) => {
            findings.warn(&draft.place, "has an endpoint and no topic", NOBODY);
            return None;
        }
    };
    let mut topic = match Topic::new(&endpoint.value, &name.value) {
        Ok(topic) => topic,
        Err(error) => {
            let wrong = if error == TopicError::Name { &name } else { &endpoint };
            findings.warn(&wrong.place, format!("{} {error}", quoted(&wrong.value)), NOBODY);
            return None;
        }
    };
    topic.events = known(&draft.events, findings);
    if topic.events.is_empty() {
        findings.warn(
            &draft.place,
            "asks for no event that is ever told",
            "name events, such as OnJobFinished and OnJobFailed",
        );
        return None;
    }
    Some(topic)
}

/// The events of a list that are ever told; what is not known is a warning.
pub(crate) fn known(events: &[At<String>], findings: &mut Findings) -> Vec<String> {
    let mut known = Vec::new();
    for event in events {
        if NAMES.contains(&event.value.as_str()) {
            known.push(event.value.clone());
        } else if !OF_THE_SERVICE.contains(&event.value.as_str()) {
            let remedy = match nearest(&event.value, NAMES) {
                Some(near) => format!("did you mean {near}?"),
                None => "see the documentation for the names of events".to_owned(),
            };
            findings.warn(&event.place, format!("{} is no event", quoted(&event.value)), remedy);
        }
    }
    known
}

#[cfg(test)]
mod tests {
    use crate::job::{Format, JobDescription, read};

    fn job(topic: &str) -> (JobDescription, String) {
        let task = r#"{"Parameters": {"Command": {"CommandLine": "true"}}}"#;
        let text = format!(r#"{{"Notification": {{"Topic": {topic}}}, "DAG": {{"Tasks": {{"a": {task}}}}}}}"#);
        let (job, warnings) = read(text.as_bytes(), Format::Detect).unwrap();
        (job, warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn a_topic_is_taken_from_the_job() {
        let endpoint = "http://123.mns.cn-beijing.aliyuncs.com/";
        let (job, warnings) = job(&format!(
            r#"{{"Name": "test-topic", "Endpoint": "{endpoint}", "Events": ["OnJobFinished", "OnPriorityChange", "OnJobFailed"]}}"#
        ));
        let topic = job.notification.unwrap();
        assert_eq!((topic.events.join(" "), warnings), ("OnJobFinished OnJobFailed".to_owned(), String::new()));
        assert_eq!(topic.shown(), "topic test-topic at http://123.mns.cn-beijing.aliyuncs.com");
    }

    #[test]
    fn a_wrong_one_is_a_warning_and_no_error() {
        let (job_, warnings) = job(r#"{"Name": "", "Endpoint": "", "Events": []}"#);
        assert_eq!((job_.notification, warnings), (None, String::new()));
        for (topic, warning) in [
            (
                r#"{"Name": "t", "Endpoint": "http://[UserId].mns.[Region].aliyuncs.com/", "Events": ["OnJobFailed"]}"#,
                "is no address",
            ),
            (r#"{"Name": "a/b", "Endpoint": "http://a/", "Events": ["OnJobFailed"]}"#, "is no name of a topic"),
            (r#"{"Name": "t", "Events": ["OnJobFailed"]}"#, "no endpoint"),
            (r#"{"Name": "t", "Endpoint": "http://a/", "Events": []}"#, "asks for no event"),
            (r#"{"Name": "t", "Endpoint": "http://a/", "Events": ["OnJobFinish"]}"#, "did you mean OnJobFinished?"),
        ] {
            let (job, warnings) = job(topic);
            assert!(job.notification.is_none() && warnings.contains(warning), "{warnings}");
        }
    }
}
