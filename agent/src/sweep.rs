//! Taking away what a killed agent has left: at the start of every run, before anything new is made.

use crate::durable::{self, FileError};
use crate::instance::record::Record;
use crate::instance::{MountPoints, Mounter, clean_up};
use crate::node::Node;

/// Cleans up after every attempt whose agent is gone. What cannot be cleaned up is said, and tried again next time.
///
/// # Errors
/// When the records cannot be read.
pub async fn sweep(node: &Node, mounter: &Mounter, mount_points: &MountPoints) -> Result<(), FileError> {
    for record in Record::all(node)? {
        // The node's daemon sees to its own, also after it was started anew.
        let is_wanted = match &record.reserved {
            Some(reservation) => !reservation.is_over(),
            None => record.agent.is_alive() || record.of_the_node,
        };
        if is_wanted {
            continue;
        }
        match clean_up(&record, node, mounter, mount_points).await {
            Ok(()) if record.reserved.is_some() => tracing::info!(attempt = record.id, "its reservation is over"),
            Ok(()) => {
                // Nobody is left who could be asked to stop.
                durable::remove(&record.stop_request)?;
                tracing::warn!(
                    attempt = record.id,
                    "the agent that ran this attempt was killed; its processes, mounts and files have been removed"
                );
            }
            Err(error) => tracing::error!(attempt = record.id, error, "what a killed agent has left cannot be removed"),
        }
    }
    Ok(())
}
