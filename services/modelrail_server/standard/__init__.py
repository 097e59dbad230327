"""The services that every gRPC server offers: health and reflection."""
