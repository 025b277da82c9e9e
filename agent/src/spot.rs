//! When the cloud is about to take the instance back: both clouds' notices, from the metadata service.
//!
//! AWS gives two minutes and Alibaba Cloud about five. Neither calls: the service is asked every `LOOK`. AWS says of an instance
//! whether it is a spot instance at all, and only then it is asked. Alibaba Cloud's metadata does not say, so there every instance is
//! asked that the settings do not call an ordinary one.

use std::time::Duration;

use jiff::Timestamp;
use oss::credentials::Metadata;
use serde::{Deserialize, Serialize};

use crate::identity::Sources;
use crate::job::finding::quoted;
use crate::settings::{Cloud, Identity};

/// How often is asked, as AWS advises.
const LOOK: Duration = Duration::from_secs(5);

/// That the instance is about to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// When, if the cloud says.
    pub at: Option<Timestamp>,
    /// What will happen to it, in the cloud's word: `terminate`, `stop`.
    pub action: String,
}

impl Notice {
    /// In words.
    pub fn text(&self) -> String {
        let at = self.at.map_or(String::new(), |at| format!(" at {at}"));
        format!("the cloud takes this spot instance back ({}{at})", self.action)
    }
}

/// Waits for a notice.
#[derive(Debug)]
pub struct Watch {
    service: Metadata,
    cloud: Cloud,
}

impl Watch {
    /// A watch for the node, if it is one that can be taken back.
    pub fn of(identity: &Identity, sources: &Sources) -> Option<Self> {
        let cloud = identity.cloud?;
        let may_go = match cloud {
            Cloud::Aws => identity.spot == Some(true),
            Cloud::Alibaba => identity.spot != Some(false),
            Cloud::None => false,
        };
        let service = sources.service(cloud, identity.metadata_endpoint.as_deref()).filter(|_| may_go)?;
        Some(Self { service, cloud })
    }

    /// The notice, when it comes. It never does on most instances.
    pub async fn notice(&self) -> Notice {
        let mut last = String::new();
        loop {
            let trouble = match self.service.get(path(self.cloud)).await {
                Ok(None) => String::new(),
                Ok(Some(answer)) => match read(self.cloud, &answer) {
                    Ok(Some(notice)) => return notice,
                    Ok(None) => String::new(),
                    Err(why) => why,
                },
                Err(error) => error.to_string(),
            };
            // Once and not every five seconds.
            if trouble != last && !trouble.is_empty() {
                tracing::warn!("whether the cloud takes this instance back cannot be found out: {trouble}");
            }
            last = trouble;
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn path(cloud: Cloud) -> &'static str {
    match cloud {
        Cloud::Aws => "/latest/meta-data/spot/instance-action",
        Cloud::Alibaba | Cloud::None => "/latest/meta-data/instance/spot/termination-time",
    }
}

/// AWS's answer.
#[derive(Deserialize)]
struct InstanceAction {
    action: String,
    time: Option<Timestamp>,
}

/// What an answer says. Not every one is a notice: programs of an instance that is put to sleep go on when it wakes.
fn read(cloud: Cloud, answer: &str) -> Result<Option<Notice>, String> {
    let nonsense = || format!("the metadata service's answer makes no sense: {}", quoted(answer.trim()));
    match cloud {
        Cloud::Aws => {
            let action: InstanceAction = serde_json::from_str(answer).map_err(|_| nonsense())?;
            Ok((action.action != "hibernate").then_some(Notice { at: action.time, action: action.action }))
        }
        Cloud::Alibaba | Cloud::None => {
            let at = answer.trim().parse().map_err(|_| nonsense())?;
            Ok(Some(Notice { at: Some(at), action: "release".to_owned() }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_both_clouds() {
        let at: Timestamp = "2026-09-18T08:22:00Z".parse().unwrap();
        let notice = |action: &str| Ok(Some(Notice { at: Some(at), action: action.to_owned() }));
        let aws = |text: &str| read(Cloud::Aws, text);
        assert_eq!(aws(r#"{"action": "terminate", "time": "2026-09-18T08:22:00Z"}"#), notice("terminate"));
        assert_eq!(aws(r#"{"action": "stop", "time": "2026-09-18T08:22:00Z", "more": 1}"#), notice("stop"));
        assert_eq!(aws(r#"{"action": "hibernate"}"#), Ok(None));
        assert_eq!(read(Cloud::Alibaba, "2026-09-18T08:22:00Z\n"), notice("release"));
        for (cloud, answer) in
            [(Cloud::Aws, "<html>"), (Cloud::Aws, "{}"), (Cloud::Alibaba, ""), (Cloud::Alibaba, "soon")]
        {
            assert!(read(cloud, answer).unwrap_err().contains("makes no sense"), "{answer:?}");
        }
        let text = notice("stop").unwrap().unwrap().text();
        assert_eq!(text, "the cloud takes this spot instance back (stop at 2026-09-18T08:22:00Z)");
    }

    #[test]
    fn only_who_can_be_taken_back_is_watched() {
        let is_watched = |cloud, spot| {
            let identity = Identity { cloud, spot, ..Identity::default() };
            Watch::of(&identity, &Sources::default()).is_some()
        };
        for (cloud, spot, expected) in [
            (Some(Cloud::Aws), Some(true), true),
            (Some(Cloud::Aws), Some(false), false),
            (Some(Cloud::Aws), None, false),
            (Some(Cloud::Alibaba), Some(true), true),
            (Some(Cloud::Alibaba), None, true),
            (Some(Cloud::Alibaba), Some(false), false),
            (Some(Cloud::None), Some(true), false),
            (None, Some(true), false),
        ] {
            assert_eq!(is_watched(cloud, spot), expected, "{cloud:?} {spot:?}");
        }
    }
}
