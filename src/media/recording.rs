//! (to be written)
pub struct Recording;
