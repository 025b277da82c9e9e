//! What a node is to be: the settings, once they have been read.
//!
//! They come from `/etc/batch-agent/node.yaml` with `node.yaml.d/*.yaml` merged over it and the command line over that (or from
//! `--config FILE` alone), are checked at the edge and turned into [`NodeSettings`], which is valid by construction. Nothing
//! behind the edge knows YAML.

mod description;

pub use description::{
    AtEnd, Bootstrap, CacheSettings, Cloud, DiskSettings, Identity, MountSource, NetworkFileSystem, NfsVersion,
    NodeMount, NodeSettings, NodeTask, Program, Report, TaskSource,
};
