//! The keys of BatchCompute's job description, object by object.
//!
//! Taken from the Python SDK 2.1.7 (`batchcompute/resources/job.py`, `cluster.py`), `bcs` 1.7.7 and Cromwell 80. Most of them
//! concern whoever starts machines and not the node; they are known so that they can be passed over without a word.

use super::object::Keys;
use super::object::Kind::{Any, Flag, List, Object, Seconds, Secret, Text, Whole};

pub(super) const JOB: Keys = &[
    ("Name", Text),
    ("Description", Text),
    ("Priority", Whole),
    ("Type", Text),
    ("JobFailOnInstanceFail", Flag),
    ("AutoRelease", Flag),
    ("Daemonize", Flag),
    ("Notification", Object),
    ("DAG", Object),
    ("App", Object),
];

pub(super) const NOTIFICATION: Keys = &[("Topic", Object)];

pub(super) const TOPIC: Keys =
    &[("Name", Text), ("Endpoint", Text), ("Events", List), ("UserData", Any), ("UserTemplate", Any)];

pub(super) const DAG: Keys = &[("Tasks", Object), ("Dependencies", Object)];

pub(super) const TASK: Keys = &[
    ("Parameters", Object),
    ("InputMapping", Object),
    ("OutputMapping", Object),
    ("LogMapping", Object),
    ("WriteSupport", Flag),
    ("Timeout", Seconds),
    ("InstanceCount", Whole),
    ("MaxRetryCount", Whole),
    ("ClusterId", Text),
    ("Daemonize", Flag),
    ("Mounts", Object),
    // `bcs` 1.7.7 writes a cluster's id here, as text, when its configured default cluster is one.
    ("AutoCluster", Any),
];

pub(super) const PARAMETERS: Keys =
    &[("Command", Object), ("InputMappingConfig", Object), ("StdoutRedirectPath", Text), ("StderrRedirectPath", Text)];

pub(super) const COMMAND: Keys =
    &[("CommandLine", Text), ("PackagePath", Text), ("EnvVars", Object), ("Docker", Object)];

pub(super) const DOCKER: Keys = &[("Image", Text), ("RegistryOSSPath", Text)];

pub(super) const INPUT_MAPPING_CONFIG: Keys = &[("Locale", Text), ("Lock", Flag)];

pub(super) const MOUNTS: Keys = &[
    ("Entries", List),
    ("Locale", Text),
    ("Lock", Flag),
    ("CacheSupport", Flag),
    ("CacheBlockSize", Whole),
    ("CacheTotalSize", Whole),
    ("NAS", Object),
    ("OSS", Object),
    ("NasMetaCache", Any),
];

pub(super) const NAS: Keys = &[("AccessGroup", List), ("FileSystem", List)];

pub(super) const OSS: Keys = &[("AccessKeyId", Text), ("AccessKeySecret", Secret), ("SecurityToken", Secret)];

pub(super) const ENTRY: Keys = &[("Source", Text), ("Destination", Text), ("WriteSupport", Flag)];

pub(super) const AUTO_CLUSTER: Keys = &[
    ("ImageId", Text),
    ("ECSImageId", Text),
    ("InstanceType", Text),
    ("ResourceType", Text),
    ("ClusterId", Text),
    ("ReserveOnFail", Flag),
    ("UserData", Object),
    ("Configs", Object),
    ("SpotStrategy", Text),
    ("SpotPriceLimit", Any),
    ("DependencyIsvService", Text),
];

pub(super) const CONFIGS: Keys = &[("Disks", Object), ("Networks", Object), ("Mounts", Object)];

pub(super) const DISKS: Keys = &[("SystemDisk", Object), ("DataDisk", Object)];

pub(super) const DISK: Keys = &[("Type", Text), ("Size", Whole), ("MountPoint", Text)];

pub(super) const NETWORKS: Keys = &[("VPC", Object), ("Classic", Any)];

pub(super) const VPC: Keys = &[("VpcId", Text), ("CidrBlock", Text)];

/// What an App job gives the App.
pub(super) const APP_JOB: Keys =
    &[("AppName", Text), ("Inputs", Object), ("Outputs", Object), ("Logging", Object), ("Config", Object)];

pub(super) const LOGGING: Keys = &[("StdoutPath", Text), ("StderrPath", Text)];

/// What an App job may ask for. Machines and disks are not a node's business.
pub(super) const APP_CONFIG: Keys = &[
    ("InstanceCount", Whole),
    ("MaxRetryCount", Whole),
    ("Timeout", Seconds),
    ("ReserveOnFail", Flag),
    ("ResourceType", Text),
    ("InstanceType", Text),
    ("MinDiskSize", Whole),
    ("DiskType", Text),
    ("MinDataDiskSize", Whole),
    ("DataDiskType", Text),
    ("DataDiskMountPoint", Text),
    ("ClassicNetwork", Flag),
];

/// The description of an App.
pub(super) const APP: Keys = &[
    ("Name", Text),
    ("Description", Text),
    ("Daemonize", Flag),
    ("CommandLine", Text),
    ("VM", Object),
    ("Docker", Object),
    ("InputParameters", Object),
    ("OutputParameters", Object),
    ("Config", Object),
    ("EnvVars", Object),
];

pub(super) const VM: Keys = &[("ECSImageId", Text)];

pub(super) const PARAMETER: Keys = &[("Description", Text), ("Type", Text), ("Default", Any), ("LocalPath", Text)];

/// One of [`APP_CONFIG`] in the description of an App.
pub(super) const APP_SETTING: Keys = &[("Description", Text), ("Default", Any), ("Overwritable", Flag)];
