//! What would happen if a job ran here.
