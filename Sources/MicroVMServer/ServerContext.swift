#if Server
import Hummingbird
import HummingbirdCore
import NIOCore

/// What a request's handlers know of it.
struct ServerContext: RequestContext {
    var coreContext: CoreRequestContextStorage
    /// The client's connection.
    let channel: any Channel

    init(source: ApplicationRequestContextSource) {
        coreContext = CoreRequestContextStorage(source: source)
        channel = source.channel
    }
}
#endif
