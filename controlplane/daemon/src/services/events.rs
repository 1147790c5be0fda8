//! What happened.

use super::paging::{Page, bad_token, filter_over, holds};
use super::{linearized, number_in, shown, status_of};
use crate::daemon::Daemon;
use basalt_api::v1::events_server::Events;
use basalt_api::v1::{Event, GetEventRequest, ListEventsRequest, ListEventsResponse};
use basalt_meta::Refused;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The service.
pub struct EventsService {
    daemon: Arc<Daemon>,
}

impl EventsService {
    /// Of this node.
    pub fn new(daemon: Arc<Daemon>) -> EventsService {
        EventsService { daemon }
    }
}

#[tonic::async_trait]
impl Events for EventsService {
    async fn get_event(
        &self,
        request: Request<GetEventRequest>,
    ) -> Result<Response<Event>, Status> {
        let name = &request.get_ref().name;
        let number = number_in("events", name)?;
        let metadata = linearized(&self.daemon).await?;
        let found = metadata.look(|state| number.and_then(|n| state.event(n)).map(shown::event));
        found.map(Response::new).ok_or_else(|| status_of(Refused::event_not_found(name)))
    }

    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let request = request.into_inner();
        let page = Page::asked(request.page_size, &request.page_token, &[&request.filter])?;
        let filter = filter_over::<Event>(&request.filter)?;
        let before = match page.after.as_deref().map(str::parse::<u64>) {
            None => u64::MAX,
            Some(number) => number.map_err(|_| bad_token())?,
        };
        let metadata = linearized(&self.daemon).await?;
        Ok(Response::new(metadata.look(|state| {
            let older = state.events().rev().filter(|event| event.number < before);
            let found = older.map(shown::event).filter(|event| holds(&filter, event));
            let mut events: Vec<Event> = found.take(page.size + 1).collect();
            let next_page_token =
                page.cut(&mut events, |e| e.name.trim_start_matches("events/").to_owned());
            ListEventsResponse { events, next_page_token, revision: state.applied() }
        })))
    }
}
