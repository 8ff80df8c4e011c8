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
            memoryLimit: configuration.memoryLimit
        )
    }

    /// Copies the module into fresh memory and links it: segments, relocations, the thread-local block.
    ///
    /// Every range was validated against the image when the module was parsed, and the address space was laid out for
    /// that image, so all of them are inside the memory.
    func load(into memory: GuestMemory, importAddresses: [UInt64]) {
        let base = memory.addressSpace.imageBase
        for segment in segments where segment.fileSize > 0 {
            let source = Int(segment.fileOffset)..<Int(segment.fileOffset + segment.fileSize)
            let destination = unsafe memory.hostBytes(at: base + segment.address, count: source.count)
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
        let threadPointer = memory.addressSpace.threadPointer
        if let block = threadLocalStorage {
            // From the image, not from the file: relocations may have changed the initial values.
            let source = unsafe memory.hostBytes(at: base + block.address, count: Int(block.fileSize))
            let start = threadPointer - block.distance
            unsafe memory.hostBytes(at: start, count: source.count).copyMemory(from: UnsafeRawBufferPointer(source))
        }
        // The thread control block: its own address (AMD64 ABI supplement on thread-local storage, 4.3.2), and the
        // stack protector's canary, whose lowest byte is zero so that a string function cannot copy it.
        memory.storeWord(threadPointer, at: threadPointer)
        memory.storeWord(UInt64.random(in: 0...(.max)) << 8, at: threadPointer + 0x28)
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
