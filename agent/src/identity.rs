//! Who this node is: what the settings leave out is asked of the cloud's metadata service.
//!
//! The cloud itself is found out first, unless it is given: by what the machine's firmware calls its maker (DMI), which costs
//! nothing and cannot hang, else by asking both services at once. Then each thing that is still unknown is asked for, all at the
//! same time.
//!
//! A node must come up without a cloud, and with a service that is slow, broken or somebody else's. So nothing here is an
//! error: what could not be found out stays unknown, notes say why, and it is over after [`Sources::deadline`]. The services are
//! never asked through a proxy, which would answer for its own machine. What they say is checked before it is believed: it
//! becomes part of host names, object names and the environment of tasks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use oss::credentials::{Metadata, MetadataError};
use oss::{Scheme, Settings};
use tokio::time::Instant;

use crate::job::finding::quoted;
use crate::settings::{Cloud, Identity};

/// How long a cloud that the firmware or the settings name is asked. Its service is there, but the network may still be
/// coming up.
const DEADLINE: Duration = Duration::from_secs(8);

/// How long is waited for an answer when it is not known whether there is a service at all.
const GUESS: Duration = Duration::from_millis(2_500);

/// Between two attempts to reach a service that must be there.
const PAUSE: Duration = Duration::from_millis(250);

/// The longest name that is believed, in bytes.
const MAX_NAME: usize = 128;

/// Where things about the node are found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The folder of the firmware's texts: `/sys/class/dmi/id`.
    pub dmi: PathBuf,
    /// Alibaba Cloud's metadata service; its usual address when absent.
    pub alibaba: Option<String>,
    /// AWS's; its usual address when absent.
    pub aws: Option<String>,
    /// How long all may take together.
    pub deadline: Duration,
}

impl Default for Sources {
    fn default() -> Self {
        Self { dmi: PathBuf::from("/sys/class/dmi/id"), alibaba: None, aws: None, deadline: DEADLINE }
    }
}

impl Sources {
    /// The usual ones, with the metadata services where `storage` says they are.
    pub fn with_storage(storage: &Settings) -> Self {
        Self {
            alibaba: storage.oss.metadata_endpoint.clone(),
            aws: storage.s3.metadata_endpoint.clone(),
            ..Self::default()
        }
    }

    /// The service of a cloud; an address in the settings counts for whichever cloud it is.
    pub(crate) fn service(&self, cloud: Cloud, given: Option<&str>) -> Option<Metadata> {
        let (scheme, own) = match cloud {
            Cloud::Alibaba => (Scheme::Oss, &self.alibaba),
            Cloud::Aws => (Scheme::S3, &self.aws),
            Cloud::None => return None,
        };
        Some(Metadata::new(scheme, given.or(own.as_deref())))
    }
}

/// Something about how the node was found out, for the log: one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Whether a person should look into it.
    pub is_warning: bool,
    /// What happened.
    pub text: String,
}

impl Note {
    fn info(text: impl Into<String>) -> Self {
        Self { is_warning: false, text: text.into() }
    }

    fn warning(text: impl Into<String>) -> Self {
        Self { is_warning: true, text: text.into() }
    }
}

/// Something that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    Region,
    Zone,
    InstanceId,
    InstanceType,
    Spot,
}

impl Item {
    const ALL: [Self; 5] = [Self::Region, Self::Zone, Self::InstanceId, Self::InstanceType, Self::Spot];

    fn is_known(self, identity: &Identity) -> bool {
        match self {
            Self::Region => identity.region.is_some(),
            Self::Zone => identity.zone.is_some(),
            Self::InstanceId => identity.instance_id.is_some(),
            Self::InstanceType => identity.instance_type.is_some(),
            Self::Spot => identity.spot.is_some(),
        }
    }

    fn named(self) -> &'static str {
        match self {
            Self::Region => "region",
            Self::Zone => "zone",
            Self::InstanceId => "instance id",
            Self::InstanceType => "instance type",
            Self::Spot => "purchase option",
        }
    }

    /// Where it is in the metadata.
    fn path(self, cloud: Cloud) -> &'static str {
        let is_aws = cloud == Cloud::Aws;
        match self {
            Self::Region if is_aws => "/latest/meta-data/placement/region",
            Self::Region => "/latest/meta-data/region-id",
            Self::Zone if is_aws => "/latest/meta-data/placement/availability-zone",
            Self::Zone => "/latest/meta-data/zone-id",
            Self::InstanceId => "/latest/meta-data/instance-id",
            Self::InstanceType if is_aws => "/latest/meta-data/instance-type",
            Self::InstanceType => "/latest/meta-data/instance/instance-type",
            Self::Spot if is_aws => "/latest/meta-data/instance-life-cycle",
            // Alibaba Cloud says it only when the instance is about to be taken back.
            Self::Spot => "/latest/meta-data/instance/spot/termination-time",
        }
    }

    /// Puts an answer where it belongs. Says whether it made sense.
    fn put(self, cloud: Cloud, answer: &str, identity: &mut Identity) -> bool {
        let answer = answer.trim();
        if self == Self::Spot {
            identity.spot = match (cloud, answer) {
                (Cloud::Aws, "spot") => Some(true),
                // `on-demand`, `scheduled`, `capacity-block`.
                (Cloud::Aws, _) => Some(false),
                _ => Some(true),
            };
            return true;
        }
        if !is_name(answer) {
            return false;
        }
        let field = match self {
            Self::Region => &mut identity.region,
            Self::Zone => &mut identity.zone,
            Self::InstanceId => &mut identity.instance_id,
            Self::InstanceType => &mut identity.instance_type,
            Self::Spot => return true,
        };
        *field = Some(answer.to_owned());
        true
    }
}

/// A name as clouds give them to regions, zones, instances and their types.
fn is_name(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.len() <= MAX_NAME && text.chars().all(fine) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// Completes what the settings say. The cloud is known afterwards ([`Cloud::None`] when there is none); anything else may
/// still be absent. What was given is never changed.
pub async fn discover(given: &Identity, sources: &Sources) -> (Identity, Vec<Note>) {
    let end = Instant::now() + sources.deadline;
    let mut identity = given.clone();
    let mut notes = Vec::new();
    let endpoint = given.metadata_endpoint.as_deref();
    let cloud = match given.cloud.or_else(|| maker(&sources.dmi)) {
        Some(cloud) => cloud,
        None => guess(sources, endpoint, end, &mut notes).await,
    };
    identity.cloud = Some(cloud);
    let wanted: Vec<Item> = Item::ALL.into_iter().filter(|item| !item.is_known(given)).collect();
    let (Some(service), false) = (sources.service(cloud, endpoint), wanted.is_empty()) else {
        return (identity, notes);
    };
    // The first question waits for the service and gets the token that the others use.
    if let Err(note) = reach(&service, end).await {
        let missing: Vec<_> = wanted.iter().map(|item| item.named()).collect();
        notes.push(Note::warning(format!(
            "{note}; unknown stay: {}. Give them in the settings under identity, or set identity.cloud to none",
            missing.join(", ")
        )));
        return (identity, notes);
    }
    let asked = wanted.into_iter().map(|item| {
        let service = &service;
        async move { (item, tokio::time::timeout_at(end, service.get(item.path(cloud))).await) }
    });
    for (item, answer) in join_all(asked).await {
        let name = item.named();
        match answer {
            Ok(Ok(Some(answer))) => {
                if !item.put(cloud, &answer, &mut identity) {
                    notes.push(Note::warning(format!(
                        "the metadata service's {name} makes no sense: {}",
                        quoted(&answer)
                    )));
                }
            }
            // Absent is what Alibaba Cloud says of every instance that is not about to be taken back.
            Ok(Ok(None)) if item == Item::Spot => {}
            Ok(Ok(None)) => notes.push(Note::warning(format!("the metadata service does not say the {name}"))),
            Ok(Err(error)) => notes.push(Note::warning(format!("the {name} stays unknown: {error}"))),
            Err(_) => notes.push(Note::warning(format!("the {name} stays unknown: the metadata service is too slow"))),
        }
    }
    (identity, notes)
}

/// Asks until the service answers at all.
async fn reach(service: &Metadata, end: Instant) -> Result<(), String> {
    let mut last = "the metadata service does not answer".to_owned();
    loop {
        match tokio::time::timeout_at(end, service.get(Item::InstanceId.path(Cloud::None))).await {
            Ok(Ok(_)) => return Ok(()),
            // It is there; what it does not say is found out one by one.
            Ok(Err(MetadataError::Refused { .. })) => return Ok(()),
            // It is there and is turned off, or is not this cloud's: that does not change by asking again.
            Ok(Err(error @ MetadataError::NoToken { status, .. })) if status.is_client_error() && status != 429 => {
                return Err(error.to_string());
            }
            Ok(Err(error @ MetadataError::Address { .. })) => return Err(error.to_string()),
            Ok(Err(error)) => last = error.to_string(),
            Err(_) => return Err(last),
        }
        if Instant::now() + PAUSE >= end {
            return Err(last);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The cloud by what the firmware says of the machine.
fn maker(dmi: &Path) -> Option<Cloud> {
    let text = |name: &str| std::fs::read_to_string(dmi.join(name)).unwrap_or_default().trim().to_owned();
    let vendor = text("sys_vendor");
    if vendor.starts_with("Amazon EC2") || text("bios_vendor").starts_with("Amazon EC2") {
        Some(Cloud::Aws)
    } else if vendor.starts_with("Alibaba Cloud") || text("product_name").starts_with("Alibaba Cloud") {
        Some(Cloud::Alibaba)
    // The older instances of AWS run on Xen.
    } else if vendor == "Xen" && text("bios_version").ends_with(".amazon") {
        Some(Cloud::Aws)
    } else {
        None
    }
}

/// The cloud by whose metadata service answers as it should. Other clouds have something at the same address, so the answer
/// has to be an instance's id.
async fn guess(sources: &Sources, endpoint: Option<&str>, end: Instant, notes: &mut Vec<Note>) -> Cloud {
    let end = end.min(Instant::now() + GUESS);
    let ask = |cloud: Cloud| async move {
        let service = sources.service(cloud, endpoint)?;
        let answer = tokio::time::timeout_at(end, service.get(Item::InstanceId.path(cloud))).await;
        matches!(answer, Ok(Ok(Some(id))) if id.trim().starts_with("i-") && is_name(id.trim())).then_some(cloud)
    };
    match tokio::join!(ask(Cloud::Alibaba), ask(Cloud::Aws)) {
        (Some(cloud), None) | (None, Some(cloud)) => cloud,
        (None, None) => {
            notes.push(Note::info(
                "no cloud was found: neither the firmware nor a metadata service names one (identity.cloud says it, if there is one)",
            ));
            Cloud::None
        }
        (Some(_), Some(_)) => {
            notes.push(Note::warning(
                "the metadata services of two clouds answer, and neither is believed: set identity.cloud",
            ));
            Cloud::None
        }
    }
}

/// Fills in what follows for object storage from who the node is, for the storage of its own cloud and where the settings
/// say nothing: the region with its endpoint, and the metadata service's address.
///
/// On Alibaba Cloud the endpoint is the internal one, as if the storage client had asked for the region by itself: it costs no
/// traffic, and a node without a way to the internet has no other.
pub fn complete_storage(identity: &Identity, storage: &mut Settings) {
    let store = match identity.cloud {
        Some(Cloud::Alibaba) => &mut storage.oss,
        Some(Cloud::Aws) => &mut storage.s3,
        Some(Cloud::None) | None => return,
    };
    // A region beside an endpoint whose name tells one could contradict it. Any other endpoint of the author's own, such as that of
    // a gateway, is in the node's own region as far as anybody knows, and the signature needs one.
    if !store.tells_region()
        && let Some(region) = &identity.region
    {
        store.region = Some(region.clone());
        if identity.cloud == Some(Cloud::Alibaba) && store.endpoint.is_none() {
            store.endpoint = Some(format!("https://oss-{region}-internal.aliyuncs.com"));
        }
    }
    store.metadata_endpoint = store.metadata_endpoint.take().or_else(|| identity.metadata_endpoint.clone());
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn dmi(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    #[test]
    fn the_firmware_names_the_cloud() {
        for (files, cloud) in [
            (&[("sys_vendor", "Amazon EC2\n")][..], Some(Cloud::Aws)),
            (&[("sys_vendor", "Alibaba Cloud\n"), ("product_name", "Alibaba Cloud ECS\n")], Some(Cloud::Alibaba)),
            (&[("sys_vendor", "Xen\n"), ("bios_version", "4.11.amazon\n")], Some(Cloud::Aws)),
            (&[("sys_vendor", "Xen\n"), ("bios_version", "4.11\n")], None),
            (&[("sys_vendor", "QEMU\n")], None),
            (&[], None),
        ] {
            assert_eq!(maker(dmi(files).path()), cloud, "{files:?}");
        }
    }

    #[test]
    fn answers_are_checked_before_they_are_believed() {
        for (answer, good) in [
            ("cn-hangzhou", true),
            (" us-east-1a\n", true),
            ("", false),
            ("a b", false),
            ("<html>", false),
            ("-x", false),
        ] {
            let mut identity = Identity::default();
            assert_eq!(Item::Region.put(Cloud::Aws, answer, &mut identity), good, "{answer:?}");
            assert_eq!(identity.region.as_deref(), good.then_some(answer.trim()));
        }
        let spot = |cloud, answer| {
            let mut identity = Identity::default();
            Item::Spot.put(cloud, answer, &mut identity);
            identity.spot
        };
        assert_eq!(spot(Cloud::Aws, "spot"), Some(true));
        assert_eq!(spot(Cloud::Aws, "on-demand"), Some(false));
        assert_eq!(spot(Cloud::Alibaba, "2026-01-01T00:00:00Z"), Some(true));
    }

    #[tokio::test]
    async fn a_node_without_a_cloud_asks_nobody() {
        // Whoever asked anything would wait here, and say so.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", silent.local_addr().unwrap());
        let given = Identity { cloud: Some(Cloud::None), region: Some("x".to_owned()), ..Identity::default() };
        let sources = Sources { alibaba: Some(address.clone()), aws: Some(address), ..Sources::default() };
        assert_eq!(discover(&given, &sources).await, (given.clone(), vec![]));
        let asked = tokio::time::timeout(Duration::from_millis(50), silent.accept()).await;
        assert!(asked.is_err(), "{asked:?}");
    }

    #[tokio::test]
    async fn a_cloud_whose_service_is_silent_leaves_unknown_what_was_not_given() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let directory = dmi(&[("sys_vendor", "Alibaba Cloud")]);
        let sources = Sources {
            dmi: directory.path().to_owned(),
            alibaba: Some(format!("http://{}", silent.local_addr().unwrap())),
            aws: None,
            deadline: Duration::from_millis(200),
        };
        let given = Identity { region: Some("cn-x".to_owned()), ..Identity::default() };
        let (identity, notes) = discover(&given, &sources).await;
        assert_eq!(identity, Identity { cloud: Some(Cloud::Alibaba), ..given });
        assert_eq!(notes.len(), 1);
        assert!(notes[0].is_warning && notes[0].text.contains("unknown stay: zone, instance id"), "{notes:?}");
    }

    #[test]
    fn storage_learns_the_region_of_its_own_cloud() {
        let identity = Identity {
            cloud: Some(Cloud::Alibaba),
            region: Some("cn-x".to_owned()),
            metadata_endpoint: Some("http://127.0.0.1:1".to_owned()),
            ..Identity::default()
        };
        let completed = |identity: &Identity, mut storage: Settings| {
            complete_storage(identity, &mut storage);
            storage
        };
        let store = |endpoint: Option<&str>, region: Option<&str>, metadata: Option<&str>| oss::StoreSettings {
            endpoint: endpoint.map(str::to_owned),
            region: region.map(str::to_owned),
            metadata_endpoint: metadata.map(str::to_owned),
            ..oss::StoreSettings::default()
        };
        let (none, here) = (oss::StoreSettings::default(), Some("http://127.0.0.1:1"));
        let internal = store(Some("https://oss-cn-x-internal.aliyuncs.com"), Some("cn-x"), here);
        let expected = Settings { oss: internal, s3: none.clone() };
        assert_eq!(completed(&identity, Settings::default()), expected);
        assert_eq!(completed(&identity, expected.clone()), expected, "doing it again changes nothing");
        for given in [
            store(None, Some("cn-y"), None),
            store(Some("http://127.0.0.1:2"), Some("cn-y"), None),
            store(Some("https://oss-cn-y.aliyuncs.com"), None, None),
            store(Some("oss-cn-y-internal.aliyuncs.com:443"), None, None),
        ] {
            let with_service = oss::StoreSettings { metadata_endpoint: here.map(str::to_owned), ..given.clone() };
            let storage = completed(&identity, Settings { oss: given, s3: none.clone() });
            assert_eq!(storage, Settings { oss: with_service, s3: none.clone() }, "what was given stays");
        }
        let gateway = |region| store(Some("http://127.0.0.1:2"), region, here);
        let storage = completed(&identity, Settings { oss: gateway(None), s3: none.clone() });
        assert_eq!(
            storage.oss,
            gateway(Some("cn-x")),
            "an endpoint that tells no region is signed for with the node's"
        );
        let aws = Identity { cloud: Some(Cloud::Aws), ..identity.clone() };
        let expected = Settings { oss: none.clone(), s3: store(None, Some("cn-x"), here) };
        assert_eq!(completed(&aws, Settings::default()), expected);
        let storage = completed(&aws, Settings { oss: none.clone(), s3: gateway(None) });
        assert_eq!(storage.s3, gateway(Some("cn-x")), "an endpoint that tells no region is signed for with the node's");
        let elsewhere = store(Some("https://s3.eu-west-1.amazonaws.com"), None, here);
        let storage = completed(&aws, Settings { oss: none.clone(), s3: elsewhere.clone() });
        assert_eq!(storage.s3, elsewhere);
        let nobody = Identity { cloud: Some(Cloud::None), ..identity };
        assert_eq!(completed(&nobody, Settings::default()), Settings::default());
    }
}
