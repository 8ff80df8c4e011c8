/// One region of served memory: what it is served from, which of its pages are being fetched, and which access failed.
///
/// Everything it knows is behind one lock, and whatever changes its memory (filling pages, protecting, dropping and
/// waking them) is done while that lock is held and the channel is there. So bytes can only get into the memory of the
/// attachment they were fetched for: a fetch looks for its number among the pages first, and that number is gone as
/// soon as the attachment is. Under the lock no code of the embedder runs: no source, no cancellation handler, no
/// `deinit`; whatever could be the last reference to such is handed out and goes later.
///
/// Locks are taken in this order: the service's, a region's, the statistics'.
final class ServedRegion: Sendable {
    /// One request to a source, for one page or several. Its number is never used again in the region.
    struct Fetch: Sendable {
        let number: UInt64
        let source: PageSource
        let pages: Range<Int>
        /// Bytes from the beginning of the region, and of the source.
        let offset: Int
        /// How many bytes the source has for these pages.
        let count: Int
    }

    /// What remains to be done for a fetch, on the handler's thread.
    enum Work: Sendable {
        case read(Fetch)
        case fill(Fetch, [UInt8])
    }

    /// What a region no longer needs, to be let go of outside of all locks.
    struct Leftovers: Sendable {
        fileprivate var attachment: Attachment?
        fileprivate var failure: PageFailure?
        fileprivate var tasks: [Task<Void, Never>] = []

        /// Tells the fetches that nobody waits for them.
        consuming func discard() {
            for task in tasks { task.cancel() }
        }
    }

    fileprivate struct Attachment: Sendable {
        let source: PageSource
        var accessibleCount: Int
        let protection: MemoryProtection
    }

    /// A page that is being fetched. All pages of a fetch enter and leave the table together.
    private struct FetchedPage {
        let fetch: UInt64
        /// The first access that waits for it; nil for a page that was only read ahead.
        var address: UInt?
    }

    private struct State {
        /// Nil as soon as the memory is no longer the handler's: nothing may touch it from then on.
        var channel: FaultChannel?
        var attachment: Attachment?
        var pages: [Int: FetchedPage] = [:]
        var tasks: [UInt64: Task<Void, Never>] = [:]
        var lastFetch: UInt64 = 0
        /// The first that was not taken yet.
        var failure: PageFailure?
        var hasProtectedPages = false
    }

    let addresses: Range<UInt>
    private let index: Int
    private let granularity: Int
    private let statistics: Locked<PageFaultHandler.Statistics>
    /// Gone only when nobody can be waiting for a page any more.
    private weak let service: PageFaultService?
    private let state: Locked<State>

    /// A region at addresses that are registered already, and that nobody may access.
    init(addresses: Range<UInt>, index: Int, granularity: Int, channel: FaultChannel, service: PageFaultService) {
        self.addresses = addresses
        self.index = index
        self.granularity = granularity
        self.service = service
        statistics = service.statistics
        state = Locked(State(channel: channel))
    }

    func settle() { state.withLock { _ in } }

    /// Whether the memory is still the handler's.
    var isOpen: Bool { state.withLock { $0.channel != nil } }

    var isAttached: Bool { state.withLock { $0.attachment != nil } }

    // MARK: - Attachments

    func attach(
        _ source: PageSource,
        accessibleCount: Int,
        protection: MemoryProtection
    ) throws(SandboxError) -> Leftovers {
        let (leftovers, failure): (Leftovers, SandboxError?) = state.withLock { state in
            guard state.channel != nil else {
                let message = "The memory is no longer served: it was removed from its handler."
                return (Leftovers(), SandboxError(.closed, message))
            }
            let leftovers = detach(&state)
            if let error = discardContent(of: addresses) ?? setProtection(protection, of: addresses) {
                // Another tenant's pages may be left; without permissions they are out of reach at least.
                _ = setProtection(nil, of: addresses)
                let message = "Could not prepare \(addresses.count) bytes; the limit on mappings may have been reached."
                return (leftovers, SandboxError(.systemCallFailed, message, underlyingError: error))
            }
            state.attachment = Attachment(source: source, accessibleCount: accessibleCount, protection: protection)
            return (leftovers, nil)
        }
        if let failure { throw failure }
        return leftovers
    }

    func detach() -> Leftovers {
        state.withLock { detach(&$0) }
    }

    private func detach(_ state: inout State) -> Leftovers {
        let leftovers = forget(&state)
        // Without permissions before anybody is woken: they must find neither zeros nor the next tenant's bytes.
        if let channel = state.channel {
            _ = setProtection(nil, of: addresses)
            channel.wake(addresses)
            _ = discardContent(of: addresses)
        }
        return leftovers
    }

    private func forget(_ state: inout State) -> Leftovers {
        defer {
            state.attachment = nil
            state.pages = [:]
            state.tasks = [:]
            state.failure = nil
            state.hasProtectedPages = false
        }
        return Leftovers(
            attachment: state.attachment,
            failure: state.failure,
            tasks: Array(state.tasks.values)
        )
    }

    /// Ends the use of the memory, which is not even touched when it has been unmapped.
    func close(isUnmapped: Bool) -> Leftovers {
        state.withLock { state in
            defer { state.channel = nil }
            return isUnmapped ? forget(&state) : detach(&state)
        }
    }

    func setAccessibleCount(_ count: Int) throws(SandboxError) {
        try state.withLock { state throws(SandboxError) in
            guard state.channel != nil, let attachment = state.attachment else { return }
            let previous = attachment.accessibleCount
            // Before the pages are dropped: a guest that runs faults on them at once.
            state.attachment?.accessibleCount = count
            let start = addresses.lowerBound
            let changed = start + UInt(min(previous, count))..<start + UInt(max(previous, count))
            if changed.isEmpty { return }
            let error =
                count > previous ? setProtection(attachment.protection, of: changed) : discardContent(of: changed)
            if let error {
                state.attachment?.accessibleCount = min(previous, count)
                throw SandboxError(
                    .systemCallFailed,
                    "Could not change the accessible memory from \(previous) to \(count) bytes.",
                    underlyingError: error
                )
            }
        }
    }

    // MARK: - Faults

    /// Somebody waits for the page at an address. Called under the service's lock, so that a message is either acted
    /// upon before ``PageFaultService/settle()`` returns or still unread, and then void when its page is woken.
    func fault(at address: UInt) -> Work? {
        state.withLock { state in
            // When there is no channel, whoever was waiting has been woken.
            guard let channel = state.channel else { return nil }
            let offset = Int(address - addresses.lowerBound)
            guard let attachment = state.attachment, offset < attachment.accessibleCount else {
                fail(kernelPage(address), address, .outOfBounds, &state)
                return nil
            }
            let page = offset / granularity
            if let fetched = state.pages[page] {
                state.pages[page]?.address = fetched.address ?? address
                return nil
            }
            // An access can fault while its page is being filled, and its message be read afterwards: its waiting is
            // over, and the source need not be asked again.
            if isPresent(kernelPage(address)) {
                channel.wake(kernelPage(address))
                return nil
            }
            return begin(page, upTo: 1 + attachment.source.readAhead, for: address, attachment, &state)
        }
    }

    /// Begins to fetch a page, with some after it that are not being fetched yet.
    private func begin(
        _ page: Int,
        upTo limit: Int,
        for address: UInt,
        _ attachment: Attachment,
        _ state: inout State
    ) -> Work? {
        let source = attachment.source
        let end = min(attachment.accessibleCount, source.available(at: 0, count: addresses.count))
        var pages = page..<page + 1
        while pages.count < limit, pages.upperBound * granularity < end, state.pages[pages.upperBound] == nil {
            pages = page..<pages.upperBound + 1
        }
        let offset = page * granularity
        let count = source.available(at: UInt64(offset), count: pages.count * granularity)
        state.lastFetch += 1
        let fetch = Fetch(number: state.lastFetch, source: source, pages: pages, offset: offset, count: count)
        for each in pages {
            state.pages[each] = FetchedPage(fetch: fetch.number, address: each == page ? address : nil)
        }
        if count == 0 { return .fill(fetch, []) }
        guard case .custom(let get) = source.storage else { return .read(fetch) }
        // The task does not keep the region: a source that never answers must keep no memory and no descriptor.
        state.tasks[fetch.number] = Task.detached(priority: .high) { [weak self] in
            let result: Result<[UInt8], any Error>
            do {
                result = .success(try await get(UInt64(offset), count))
            } catch {
                result = .failure(error)
            }
            self?.complete(fetch, result)
        }
        return nil
    }

    /// Does what remains to be done for a fetch.
    func perform(_ work: Work) {
        switch work {
        case .fill(let fetch, let bytes): complete(fetch, .success(bytes))
        case .read(let fetch):
            do throws(SandboxError) {
                // Only custom sources have nothing to read, and they are asked elsewhere.
                let bytes = try fetch.source.storage.read(at: UInt64(fetch.offset), count: fetch.count)
                complete(fetch, .success(bytes ?? []))
            } catch {
                complete(fetch, .failure(error))
            }
        }
    }

    /// A source has answered, on whichever thread this is.
    private func complete(_ fetch: Fetch, _ result: Result<[UInt8], any Error>) {
        switch result {
        case .success(var bytes) where bytes.count <= fetch.count:
            // The kernel takes whole pages.
            let (_, rest) = bytes.count.quotientAndRemainder(dividingBy: FaultChannel.pageSize)
            if rest > 0 { bytes.append(contentsOf: repeatElement(0, count: FaultChannel.pageSize - rest)) }
            let isSettled = state.withLock { fill(fetch, with: bytes, &$0) }
            if !isSettled { service?.retry(.fill(fetch, bytes), in: self) }
        case .success(let bytes):
            let error = SandboxError(
                .invalidArgument,
                "A page source was asked for \(fetch.count) bytes at \(fetch.offset) and returned \(bytes.count)."
            )
            refuse(fetch, error)
        case .failure(let error): refuse(fetch, error)
        }
    }

    /// Whether nobody waits for the fetch any more: because attachment or interest have gone, or because of this.
    private func isOver(_ fetch: Fetch, _ state: State) -> Bool {
        // The number is this fetch's alone; an attachment, an abandonment or a removal since have taken it away.
        state.pages[fetch.pages.lowerBound]?.fetch != fetch.number
    }

    /// Makes the pages of a fetch present; false when that is to be tried again.
    private func fill(_ fetch: Fetch, with bytes: [UInt8], _ state: inout State) -> Bool {
        guard let channel = state.channel, let attachment = state.attachment, !isOver(fetch, state) else { return true }
        let end = min(fetch.pages.upperBound * granularity, attachment.accessibleCount)
        let pages = addresses.lowerBound + UInt(fetch.offset)..<addresses.lowerBound + UInt(max(fetch.offset, end))
        let filling = channel.fill(pages, with: bytes)
        statistics.withLock { statistics in
            statistics.copiedPages += filling.copied / FaultChannel.pageSize
            statistics.zeroPages += filling.zeroed / FaultChannel.pageSize
        }
        switch filling.end {
        case .tryAgain: return false
        case .failed(let error): fail(remove(fetch, &state), .sourceFailed(error), &state)
        case .complete:
            // The memory may have become shorter meanwhile.
            fail(remove(fetch, &state).filter { $0 >= pages.upperBound }, .outOfBounds, &state)
        }
        return true
    }

    /// The source has no page: the accesses that wait for one fail. Where several pages were asked for, each that is
    /// needed gets a request of its own first, because the error may be another's.
    private func refuse(_ fetch: Fetch, _ error: any Error) {
        let work: [Work] = state.withLock { state in
            guard state.channel != nil, let attachment = state.attachment, !isOver(fetch, state) else { return [] }
            let waiting = remove(fetch, &state)
            guard fetch.pages.count > 1 else {
                fail(waiting, .sourceFailed(error), &state)
                return []
            }
            return waiting.compactMap { address in
                let page = Int(address - addresses.lowerBound) / granularity
                return begin(page, upTo: 1, for: address, attachment, &state)
            }
        }
        for each in work { service?.add(each, in: self) }
    }

    /// Takes a fetch out of the table; returns the accesses that were waiting for its pages.
    private func remove(_ fetch: Fetch, _ state: inout State) -> [UInt] {
        state.tasks[fetch.number] = nil
        return fetch.pages.compactMap { state.pages.removeValue(forKey: $0)?.address }
    }

    // MARK: - Failures

    /// Ends every wait for a page of this region. How many accesses that were is counted in the statistics.
    func abandon() -> Leftovers {
        state.withLock { state in
            let waiting = state.pages.values.compactMap(\.address).sorted()
            let leftovers = Leftovers(tasks: Array(state.tasks.values))
            state.pages = [:]
            state.tasks = [:]
            if state.channel != nil { fail(waiting, .abandoned, &state) }
            return leftovers
        }
    }

    /// The failure that was recorded first. Its page, and all others that failed, can be accessed again.
    func takeFailure() -> PageFailure? {
        state.withLock { state in
            defer { state.failure = nil }
            if state.hasProtectedPages, state.channel != nil, let attachment = state.attachment {
                state.hasProtectedPages = setProtection(attachment.protection, of: addresses) != nil
            }
            return state.failure
        }
    }

    /// Whoever waits for an address of a region that is closed fails. The kernel has just said that it watches it.
    func refuse(_ address: UInt, _ channel: FaultChannel) {
        _ = setProtection(nil, of: kernelPage(address))
        channel.wake(kernelPage(address))
    }

    private func fail(_ waiting: [UInt], _ reason: PageFailure.Reason, _ state: inout State) {
        for address in waiting {
            // Others may be waiting for other parts of the page.
            let start = addresses.lowerBound + (address - addresses.lowerBound) / UInt(granularity) * UInt(granularity)
            fail(start..<start + UInt(granularity), address, reason, &state)
        }
    }

    /// Takes all permissions away from pages, so that whoever waits for them, once woken, finds that they cannot be
    /// accessed: KVM_RUN and copies by the kernel then end with EFAULT.
    private func fail(_ pages: Range<UInt>, _ address: UInt, _ reason: PageFailure.Reason, _ state: inout State) {
        // A single protected page takes two more mappings, which may be too many; the region as a whole takes none.
        if setProtection(nil, of: pages) != nil { _ = setProtection(nil, of: addresses) }
        state.hasProtectedPages = true
        let offset = Int(address - addresses.lowerBound)
        state.failure = state.failure ?? PageFailure(address: address, region: index, offset: offset, reason: reason)
        statistics.withLock { statistics in
            switch reason {
            case .outOfBounds: statistics.outOfBoundsAccesses += 1
            case .sourceFailed: statistics.sourceFailures += 1
            case .abandoned: statistics.abandonedAccesses += 1
            }
        }
        state.channel?.wake(pages)
    }

    private func kernelPage(_ address: UInt) -> Range<UInt> {
        let start = address & ~UInt(FaultChannel.pageSize - 1)
        return start..<start + UInt(FaultChannel.pageSize)
    }
}
