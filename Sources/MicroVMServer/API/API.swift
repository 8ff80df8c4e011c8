#if Server
/// What goes over the wire, as JSON; docs/openapi.yaml describes it.
package enum API {
    /// The version that is the first part of every path.
    package static let version = "v1"
    /// The path of the description of everything.
    package static let mediaType = "application/json"
}
#endif
