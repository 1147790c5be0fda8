//! Real processes under faults
