/*
 * Copyright 2026 The Tideline authors.
 * SPDX-License-Identifier: Apache-2.0
 */

package dev.tideline.ships

import dev.tideline.core.Events
import dev.tideline.core.InMemoryStore
import dev.tideline.core.Metres
import dev.tideline.core.Moment
import dev.tideline.core.Outcome
import dev.tideline.core.Reason
import dev.tideline.core.Store
import dev.tideline.core.TideClock
import dev.tideline.core.TideEvent
import dev.tideline.core.Tonnes
import dev.tideline.core.ledger
import dev.tideline.core.onDone
import dev.tideline.core.onRefused
import dev.tideline.core.requireFound
import dev.tideline.core.requireThat
import dev.tideline.core.then

/** Identifies a ship by its number in the international register. */
@JvmInline
value class ShipId(val raw: String) {
    override fun toString(): String = raw
}

/** Names what a ship was built to carry. */
enum class ShipKind { CONTAINER, BULK, TANKER, FERRY, FISHING }

/** Describes a ship as far as the harbour cares about it. */
data class Ship(
    val id: ShipId,
    val name: String,
    val kind: ShipKind,
    val length: Metres,
    val draught: Metres,
    val deadweight: Tonnes,
)

/** Tells that a ship was entered into the registry. */
data class ShipRegistered(val ship: ShipId, override val at: Moment) : TideEvent

/** Keeps the ships that have ever called. */
interface ShipStore : Store<ShipId, Ship> {
    /** Lists the ships of one kind. */
    fun listOfKind(kind: ShipKind): List<Ship>
}

/** Keeps the ships in memory. */
class InMemoryShipStore : InMemoryStore<ShipId, Ship>("ship", Ship::id), ShipStore {
    override fun listOfKind(kind: ShipKind): List<Ship> = listWhere { it.kind == kind }
}

/** Registers ships and guards the quality of their particulars. */
class ShipRegistry(
    private val ships: ShipStore,
    private val events: Events,
    private val clock: TideClock,
) {
    private val log = ledger<ShipRegistry>()

    /** Registers a ship, or refuses when its number or its dimensions make no sense. */
    fun register(ship: Ship): Outcome<Ship> =
        checkNumber(ship.id)
            .then { checkDimensions(ship) }
            .then { ships.add(ship) }
            .onDone {
                log.note("ship.registered", "ship" to ship.id, "kind" to ship.kind)
                events.publish(ShipRegistered(ship.id, clock.now()))
            }
            .onRefused { log.warn("ship.refused", "ship" to ship.id, "reason" to it.reason) }

    /** Finds the longest ship of a kind. */
    fun findLongest(kind: ShipKind): Outcome<Ship> =
        requireFound(ships.listOfKind(kind).maxByOrNull { it.length }) { "no ship of kind $kind" }

    private fun checkNumber(id: ShipId): Outcome<Unit> {
        val digits = id.raw.mapNotNull { it.digitToIntOrNull() }
        return requireThat(digits.size == 7 && id.raw.length == 7, Reason.INVALID) { "$id is not a number" }
            .then {
                val sum = digits.take(6).withIndex().sumOf { (index, digit) -> digit * (7 - index) }
                requireThat(sum % 10 == digits.last(), Reason.INVALID) { "$id is misspelt" }
            }
    }

    private fun checkDimensions(ship: Ship): Outcome<Unit> =
        requireThat(ship.length > Metres(0.0), Reason.INVALID) { "${ship.name} has no length" }
            .then {
                requireThat(ship.draught < ship.length * 0.2, Reason.INVALID) {
                    "${ship.name} draws ${ship.draught} on a length of ${ship.length}"
                }
            }
}
