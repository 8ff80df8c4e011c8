import CShims

extension GuestModule {
    /// The address-space sizes this module needs.
    func addressSpaceSizes(_ configuration: SandboxConfiguration) -> AddressSpace.Sizes {
        AddressSpace.Sizes(
            importCount: imports.count,
            threadLocalSize: threadLocalStorage?.distance ?? 0,
            threadLocalAlignment: threadLocalStorage?.alignment ?? 1,
            imageSize: imageSize,
            imageAlignment: imageAlignment,
            image: mappings,
            stackSize: configuration.stackSize,
            arenaSize: configuration.argumentArenaSize,
            memoryLimit: configuration.memoryLimit,
            initialMemorySize: configuration.initialMemorySize,
            windowCount: configuration.windowCount,
            windowSize: configuration.windowSize
        )
    }

    /// The module's image for sandboxes of one layout, made when the first of them needs it.
    func image(
        _ configuration: SandboxConfiguration,
        imports targets: [GuestImage.ImportTarget]
    ) throws(SandboxError) -> GuestImage {
        let sizes = addressSpaceSizes(configuration)
        let absent = targets.map { $0 == .absent }
        let known = images.withLock { $0.first { $0.addressSpace.sizes == sizes && $0.absentImports == absent } }
        if let known { return known }
        // Not under the lock: should two threads do the same at the same time, one image is forgotten.
        let made = try GuestImage(self, sizes: sizes, imports: targets)
        images.withLock { images in
            images.append(made)
            if images.count > Self.imagesMaximum { images.removeFirst() }
        }
        return made
    }

    /// Copies the module into fresh memory and links it: segments, relocations, the thread-local block.
    ///
    /// Every range was validated against the image when the module was parsed, and the address space was laid out for
    /// that image, so all of them are inside the memory.
    func load(into memory: ImageWriter, addressSpace: AddressSpace, importAddresses: [UInt64]) {
        let base = addressSpace.imageBase
        for segment in segments where segment.fileSize > 0 {
            let source = Int(segment.fileOffset)..<Int(segment.fileOffset + segment.fileSize)
            let destination = unsafe memory.bytes(at: base + segment.address, count: source.count)
            unsafe bytes.withUnsafeBytes { bytes in
                unsafe destination.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[source]))
            }
        }
        for relocation in relocations {
            let value: UInt64 =
                switch relocation.value {
                case .image(let offset): base &+ offset
                case .constant(let constant): constant
                case .importAddress(let index, let addend):
                    importAddresses[index] == 0 ? 0 : importAddresses[index] &+ UInt64(bitPattern: addend)
                }
            memory.storeWord(value, at: base + relocation.offset)
        }
        let threadPointer = addressSpace.threadPointer
        if let block = threadLocalStorage {
            // From the image, not from the file: relocations may have changed the initial values.
            let source = unsafe memory.bytes(at: base + block.address, count: Int(block.fileSize))
            let start = threadPointer - block.distance
            unsafe memory.bytes(at: start, count: source.count).copyMemory(from: UnsafeRawBufferPointer(source))
        }
        // The thread control block: its own address (AMD64 ABI supplement on thread-local storage, 4.3.2).
        memory.storeWord(threadPointer, at: threadPointer)
    }

    /// The initialisers' addresses in the order in which they run, read from the loaded image.
    ///
    /// - Throws: ``SandboxError/Code/invalidModule`` when one of them is not code.
    func initializerAddresses(in memory: GuestMemory) throws(SandboxError) -> [UInt64] {
        let addressSpace = memory.addressSpace
        var addresses: [UInt64] = []
        if let function = initializers.function { addresses.append(addressSpace.imageBase + function) }
        for index in 0..<initializers.arrayCount {
            let address = memory.loadWord(at: addressSpace.imageBase + initializers.arrayAddress + UInt64(index) * 8)
            // Linkers leave 0 and -1 as placeholders, and the System V loaders skip them.
            if address == 0 || address == .max { continue }
            addresses.append(address)
        }
        for address in addresses where !addressSpace.permits(.execute, address: address, count: 1) {
            throw SandboxError(
                .invalidModule,
                "The initialiser at 0x\(String(address, radix: 16)) is not in the module's code."
            )
        }
        return addresses
    }
}
